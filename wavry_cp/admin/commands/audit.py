"""``wavryctl audit`` and ``wavryctl events``: who did what, and what happens, of both services."""

import asyncio
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Final, Literal, NoReturn, TypeVar

import msgspec
import typer

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.durations import duration_s
from wavry_cp.admin.endpoints import ServiceEndpoints, endpoints_of
from wavry_cp.admin.news_feed import PAGE_ROWS, AskPage, NewsFeed, Page
from wavry_cp.admin.output import JsonOption, moment, print_json, print_rows, run
from wavry_peer.protocol.http.admin import AuditPage, AuditRow, SessionNews, SessionNewsPage
from wavry_peer.protocol.http.relays import RelayNews, RelayNewsPage

__all__ = ["audit", "events"]

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


class EventLine(msgspec.Struct, frozen=True):
    """One event; `target` is the id of the session or relay, or what an act was about."""

    at: int
    service: str
    kind: Literal["act", "session", "relay"]
    event: str
    target: str
    detail: str


Line = TypeVar("Line", AuditLine, EventLine)


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
        endpoints = endpoints_of(context)
        part = "" if only is None else f"&only={only.value}"
        from_s = "" if since is None else f"&since={max(0, int(time.time()) - since)}"
        feed = NewsFeed(audit_logs(endpoints, part), f"limit={limit}{from_s}")
        if follow:
            await _follow(feed, _told, as_json=json)
        _print_list(await feed.next(), as_json=json)

    run(work, as_json=json)


def events(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option(min=1, max=200, help="Most events of each kind, the last ones.")
    ] = 20,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on and print each new one; Ctrl-C ends it.")
    ] = False,
    json: Annotated[bool, JsonOption] = False,
) -> None:
    """Show what happens: sessions that begin, move and end, states of relays, acts and refusals.

    The ids are those that `sessions show`, `relays show` and `leases revoke` take. Sessions are
    told from memory: a gateway that was started again knows only what came after.
    With --follow and --json each event is one line.

    Examples:
      wavryctl events

      wavryctl events --follow --json
    """

    async def work() -> None:
        endpoints = endpoints_of(context)
        feed = NewsFeed(_all_logs(endpoints), f"limit={limit}")
        if follow:
            await _follow(feed, _told_event, as_json=json)
        lines = await feed.next()
        if json:
            print_json({"events": lines})
            return
        for line in lines:
            _print_line(line, _told_event, as_json=False)

    run(work, as_json=json)


async def _follow(feed: NewsFeed[Line], told: Callable[[Line], str], *, as_json: bool) -> NoReturn:
    lines = await feed.next()
    while True:
        for line in lines:
            _print_line(line, told, as_json=as_json)
        await asyncio.sleep(POLL_S)
        lines = await feed.next(patient=True)


def audit_logs(endpoints: ServiceEndpoints, part: str = "") -> dict[str, AskPage[AuditLine]]:
    """Return the audit logs of both services."""
    urls = {"master": endpoints.need_master(), "gateway": endpoints.need_gateway()}
    token = endpoints.admin_token()

    def log_of(service: str) -> AskPage[AuditLine]:
        last = 0

        async def ask(query: str) -> Page[AuditLine]:
            nonlocal last
            path = f"/v1/admin/audit?{query}{part}"
            page = await ask_json(service, urls[service], path, AuditPage, token=token)
            last = page.entries[-1].id if page.entries else last
            return [_line(service, row) for row in page.entries], f"after={last}"

        return ask

    return {service: log_of(service) for service in urls}


def _all_logs(endpoints: ServiceEndpoints) -> dict[str, AskPage[EventLine]]:
    gateway, master = endpoints.need_gateway(), endpoints.need_master()
    token = endpoints.admin_token()
    last = 0

    async def sessions(query: str) -> Page[EventLine]:
        path = f"/v1/admin/session-news?{query}"
        page = await ask_json("gateway", gateway, path, SessionNewsPage, token=token)
        end = page.news[-1].number if page.news else page.last
        return [_session_event(one) for one in page.news], f"log={page.log_id}&after={end}"

    async def relays(query: str) -> Page[EventLine]:
        nonlocal last
        path = f"/v1/admin/relay-news?{query.replace(f'limit={PAGE_ROWS}', 'limit=200')}"
        page = await ask_json("master", master, path, RelayNewsPage, token=token)
        last = page.news[-1].id if page.news else last
        return [_relay_event(one) for one in page.news], f"after={last}"

    def acts_of(ask: AskPage[AuditLine]) -> AskPage[EventLine]:
        async def acts(query: str) -> Page[EventLine]:
            page, following = await ask(query)
            return [_act_event(line) for line in page], following

        return acts

    audited = {name: acts_of(ask) for name, ask in audit_logs(endpoints).items()}
    return {**audited, "sessions": sessions, "relays": relays}


def _session_event(one: SessionNews) -> EventLine:
    over = f", relay {one.relay_id}" if one.relay_id else ""
    return EventLine(
        one.at,
        "gateway",
        "session",
        one.event,
        one.session_id,
        f"{one.caller} > {one.callee}{over}",
    )


def _relay_event(one: RelayNews) -> EventLine:
    why = f": {one.text}" if one.text else ""
    return EventLine(
        one.at,
        "master",
        "relay",
        one.after,
        one.relay_id,
        f"{one.name}, {one.before or 'new'}{why}",
    )


def _act_event(line: AuditLine) -> EventLine:
    why = f" ({line.reason})" if line.reason else ""
    return EventLine(
        line.at, line.service, "act", line.action, line.target, f"{line.who}{why}: {line.outcome}"
    )


def _told_event(line: EventLine) -> str:
    return f"{line.service} {line.kind} {line.event} {line.target}: {line.detail}"


def _told(line: AuditLine) -> str:
    why = f" ({line.reason})" if line.reason else ""
    return f"{line.service} {line.who} {line.action} {line.target}{why}: {line.outcome}"


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


def _print_line(line: Line, told: Callable[[Line], str], *, as_json: bool) -> None:
    text = msgspec.json.encode(line).decode() if as_json else f"{moment(line.at)} {told(line)}"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
