"""``wavryctl audit``: who did what, of master and gateway in one list."""

import asyncio
import sys
import time
from enum import StrEnum
from typing import Annotated, Final

import msgspec
import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.output import (
    EXIT_UNREACHABLE,
    CommandError,
    JsonOption,
    moment,
    print_json,
    print_note,
    print_rows,
    run,
)
from wavry_peer.protocol.http.admin import AuditPage, AuditRow

__all__ = ["audit"]

PAGE_ROWS: Final = 1000
POLL_S: Final = 1.0


class AuditPartOption(StrEnum):
    """Which rows."""

    ACTS = "acts"
    REFUSED = "refused"


class AuditLine(msgspec.Struct, frozen=True):
    """One act and the service that wrote it."""

    at: int
    service: str
    id: int
    who: str
    action: str
    target: str
    reason: str
    outcome: str


def audit(
    context: typer.Context,
    since: Annotated[
        int | None,
        typer.Option(parser=duration_s, metavar="TIME", help="Only the last e.g. 2h or 7d."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=PAGE_ROWS, help="Most acts of each service, the last ones.")
    ] = 200,
    only: Annotated[
        AuditPartOption | None,
        typer.Option(help="acts of operators and users, or what was refused to addresses."),
    ] = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on and print each new act; Ctrl-C ends it.")
    ] = False,
    json: Annotated[bool, JsonOption] = False,
) -> None:
    """Show what operators and users did, and what was refused to whom: wrong logins, limits.

    A flood is one row at once, then a count each minute. An address is a hash, its key new each
    day.
    With --follow and --json each act is one line.

    Examples:
      wavryctl audit --since 24h

      wavryctl audit --only refused --since 1h

      wavryctl audit --follow --json
    """

    async def work() -> None:
        reader = _Reader(endpoints_of(context), since, limit, only)
        lines = await reader.next()
        if not follow:
            _print_list(lines, as_json=json)
            return
        while True:
            for line in lines:
                _print_line(line, as_json=json)
            await asyncio.sleep(POLL_S)
            lines = await reader.next(patient=True)

    run(work, as_json=json)


class _Reader:
    """Reads both logs on from where it stopped."""

    def __init__(
        self,
        endpoints: ServiceEndpoints,
        since_s: int | None,
        limit: int,
        only: AuditPartOption | None,
    ) -> None:
        self._urls = {"master": endpoints.need_master(), "gateway": endpoints.need_gateway()}
        self._token = endpoints.admin_token()
        self._since = "" if since_s is None else f"&since={max(0, int(time.time()) - since_s)}"
        self._only = "" if only is None else f"&only={only.value}"
        self._limit = limit
        self._after: dict[str, int] = {}
        self._missing: set[str] = set()

    async def next(self, *, patient: bool = False) -> list[AuditLine]:
        """Return what is new, by time.

        Raises:
            CommandError: a service refuses, or (unless `patient`) cannot be reached.
        """
        found = await asyncio.gather(
            *(self._service(service, patient=patient) for service in self._urls)
        )
        lines = [line for some in found for line in some]
        return sorted(lines, key=lambda line: (line.at, line.service, line.id))

    async def _service(self, service: str, *, patient: bool) -> list[AuditLine]:
        rows: list[AuditRow] = []
        try:
            first = service not in self._after
            rows += await self._page(service, first=first)
            while not first and len(rows) % PAGE_ROWS == 0 and rows:
                page = await self._page(service, first=False)
                rows += page
                if not page:
                    break
            self._missing.discard(service)
        except CommandError as error:
            if not patient or error.exit_code != EXIT_UNREACHABLE:
                raise
            if service not in self._missing:
                self._missing.add(service)
                print_note(f"{error}; waiting for it")
        return [_line(service, row) for row in rows]

    async def _page(self, service: str, *, first: bool) -> tuple[AuditRow, ...]:
        query = f"limit={self._limit}{self._since}"
        if not first:
            query = f"limit={PAGE_ROWS}&after={self._after[service]}"
        page = await ask_json(
            service,
            self._urls[service],
            f"/v1/admin/audit?{query}{self._only}",
            AuditPage,
            token=self._token,
        )
        last = page.entries[-1].id if page.entries else 0
        self._after[service] = max(last, self._after.get(service, 0))
        return page.entries


def _line(service: str, row: AuditRow) -> AuditLine:
    return AuditLine(
        row.at, service, row.id, row.who, row.action, row.target, row.reason, row.outcome
    )


def _print_list(lines: list[AuditLine], *, as_json: bool) -> None:
    if as_json:
        print_json({"entries": lines})
        return
    print_rows(
        "Audit",
        ("when", "service", "who", "act", "target", "reason", "outcome"),
        [
            (moment(line.at), line.service, line.who, line.action, line.target, line.reason,
             line.outcome)
            for line in lines
        ],
    )  # fmt: skip


def _print_line(line: AuditLine, *, as_json: bool) -> None:
    if as_json:
        text = msgspec.json.encode(line).decode()
    else:
        why = f" ({line.reason})" if line.reason else ""
        what = f"{line.who} {line.action} {line.target}{why}: {line.outcome}"
        text = f"{moment(line.at)} {line.service} {what}"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
