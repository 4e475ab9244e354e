"""``make release-check``: runs the lines of docs/checklist.md and prints a verdict for each."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .canary import CanaryError, local_canary, read_metrics, remote_canary, store
from .checklist import ChecklistError, Line, choose, read_checklist

__all__ = ["Check", "Verdict", "app"]

REPOSITORY: Final = Path(__file__).parents[2]
REMOTE: Final = "remote"
SHOWN_LINES: Final = 12
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
_CTRL_C: Final = frozenset({signal.SIGINT})

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Verdict:
    """What came of one line.

    Attributes:
        name: of the line.
        verdict: ``pass`` or ``fail``.
        seconds: that it took.
        command: that was run.
        log: what it said.
        why: the end of that, where it failed.
    """

    name: str
    verdict: str
    seconds: float
    command: str
    log: str
    why: str = ""


class Check:
    """One run of the checklist.

    Args:
        directory: for logs, the canary's data and the reading of its begin.
        canary: directory of a running dev system, ``remote``, or "" to start one.
        keep: compare with the reading of an earlier run.
        tell: told each step.
    """

    def __init__(
        self,
        directory: Path,
        *,
        canary: str = "",
        keep: bool = False,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._directory = directory
        self._canary = canary
        self._keep = keep
        self._tell = tell
        self._cleanup = contextlib.ExitStack()
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        self._environ = {**os.environ, "PATH": path}
        self._canary_environ: dict[str, str] | None = None

    def run(self, lines: list[Line]) -> list[Verdict]:
        """Run lines in their order; one that fails does not end the others."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._cleanup:
            return [self._judge(line) for line in lines]

    def _judge(self, line: Line) -> Verdict:
        self._tell(f"      {line.name}: {line.command}")
        log = self._directory / line.file_name
        began = time.monotonic()
        try:
            environ = self._on_canary() if line.on_canary else self._environ
        except CanaryError as error:
            log.write_text(f"{error}\n")
            status = EXIT_FAILED
        else:
            status = _run(line.command, environ, log)
        seconds = time.monotonic() - began
        passed = status == 0
        end = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        verdict = Verdict(
            line.name,
            "pass" if passed else "fail",
            round(seconds, 1),
            line.command,
            str(log),
            "" if passed else "\n".join([*end, f"exit status {status}"]),
        )
        self._tell(f"{verdict.verdict}  {line.name} ({seconds:.1f} s)")
        if not passed:
            self._tell("".join(f"        {text}\n" for text in verdict.why.splitlines()).rstrip())
            self._tell(f"        all of it: {log}")
        return verdict

    def _on_canary(self) -> dict[str, str]:
        if self._canary_environ is None:
            before = self._directory / "before.json"
            named = self._named_canary()
            environ = {
                name: text
                for name, text in self._environ.items()
                if self._canary == REMOTE or not name.startswith(("WAVRY_", "CANARY_"))
            }
            environ |= named | {"CANARY_BEFORE": str(before)}
            if not (self._keep and before.exists()):
                store(read_metrics(environ), before)
            self._canary_environ = environ
        return self._canary_environ

    def _named_canary(self) -> dict[str, str]:
        if self._canary == REMOTE:
            return remote_canary(self._environ)
        if self._canary:
            directory = Path(self._canary).absolute()
            return {"WAVRY_DEV_DIR": str(directory), "CANARY_LOGS": str(directory / "logs")}
        started = local_canary((self._directory / "canary").absolute(), self._environ)
        return self._cleanup.enter_context(started)


def _run(command: str, environ: dict[str, str], log: Path) -> int:
    """Run a command in a shell of its own, so that Ctrl-C can end all of it; its exit status."""
    shell = shutil.which("bash") or "sh"
    with log.open("wb") as output:
        # A Ctrl-C before the process has a name here would leave it behind.
        signal.pthread_sigmask(signal.SIG_BLOCK, _CTRL_C)
        process = subprocess.Popen(
            [shell, "-euc", command],
            cwd=REPOSITORY,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_let_ctrl_c_through,
        )
        try:
            _let_ctrl_c_through()
            return process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def _let_ctrl_c_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _CTRL_C)


def _summary(verdicts: list[Verdict]) -> dict[str, Any]:
    ok = all(verdict.verdict == "pass" for verdict in verdicts)
    return {"ok": ok, "lines": [asdict(verdict) for verdict in verdicts]}


@app.command()
def main(
    only: Annotated[str, typer.Option(help="Names of lines, separated by commas.")] = "",
    skip: Annotated[str, typer.Option(help="Names of lines to leave out.")] = "",
    canary: Annotated[
        str,
        typer.Option(
            help="Directory of a running `wavryctl dev up`, or `remote` (see docs/checklist.md)."
        ),
    ] = "",
    checklist: Annotated[Path, typer.Option(help="What is run.")] = REPOSITORY
    / "docs/checklist.md",
    directory: Annotated[Path, typer.Option(help="For logs.")] = REPOSITORY / "build/release",
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Compare metrics with the begin of an earlier run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON at the end.")] = False,
) -> None:
    """Run the lines of docs/checklist.md; exit status 0: all pass, 1: one fails, 2: asked wrongly.

    Example: python -m tests.release.check --skip tests
    """

    def tell(text: str) -> None:
        typer.echo(text, err=as_json)

    try:
        lines = choose(read_checklist(checklist), only=only, skip=skip)
    except (ChecklistError, OSError) as error:
        typer.echo(f"release-check: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from error
    try:
        verdicts = Check(directory, canary=canary, keep=keep, tell=tell).run(lines)
    except KeyboardInterrupt:
        typer.echo("release-check: interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    summary = _summary(verdicts)
    failed = [verdict.name for verdict in verdicts if verdict.verdict != "pass"]
    seconds = sum(verdict.seconds for verdict in verdicts)
    tell(
        f"{len(verdicts) - len(failed)} of {len(verdicts)} lines pass ({seconds:.0f} s)"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    raise typer.Exit(0 if summary["ok"] else EXIT_FAILED)


if __name__ == "__main__":
    app()
