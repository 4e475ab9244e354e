"""Prints a report as tables for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .stats import Report, Row

__all__ = ["number", "show"]


def number(value: float) -> str:
    """Return a number with as many digits as it deserves."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _cell(row: Row) -> str:
    if row.runs == 1:
        return number(row.median)
    return f"{number(row.median)} [{number(row.min)} .. {number(row.max)}]"


def _bench_table(bench: str, rows: Sequence[Row]) -> Table:
    table = Table(title=bench, title_justify="left", title_style="bold")
    metrics = list(dict.fromkeys((row.metric, row.unit) for row in rows))
    table.add_column("case", overflow="fold")
    for metric, unit in metrics:
        table.add_column(f"{metric}\n{unit}", justify="right")
    cells = {(row.case, row.metric, row.unit): _cell(row) for row in rows}
    for case in dict.fromkeys(row.case for row in rows):
        values = [Text(cells.get((case, *column), "")) for column in metrics]
        table.add_row(Text(case), *values)
    return table


def show(report: Report, console: Console) -> None:
    """Print machine, one table for each bench, targets, and what was skipped."""
    machine = ", ".join(f"{name}={value}" for name, value in report.machine.items())
    console.print(machine, highlight=False, markup=False)
    if report.machine.get("busy"):
        console.print("The machine was busy: compare rows, do not quote them.", style="yellow")
    for bench in dict.fromkeys(row.bench for row in report.rows):
        console.print(_bench_table(bench, [row for row in report.rows if row.bench == bench]))
    if report.targets:
        targets = Table(title="targets", title_justify="left", title_style="bold")
        for heading in ("name", "want", "got", ""):
            targets.add_column(heading, overflow="fold")
        for target in report.targets:
            verdict = Text("ok", style="green") if target.ok else Text("missed", style="red")
            targets.add_row(Text(target.name), target.want, number(target.got), verdict)
        console.print(targets)
    for skipped in report.skipped:
        console.print(
            f"skipped: {skipped.bench} {skipped.case}: {skipped.reason}",
            markup=False,
            style="yellow",
        )
