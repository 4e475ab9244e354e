"""``/v1/relays/{id}/history``: the changes of a relay's state."""

from typing import Final

from aiohttp import web

from wavry_cp.app.queries import limit_of, number_of
from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.master.master import Master
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relays import RelayHistory, RelayNews, RelayNewsPage, RelayStateChange

__all__ = ["HEALTH_ROUTES"]

MOST: Final = 200


async def _history(master: Master, request: web.Request) -> RelayHistory:
    record = master.registry.find(request.match_info["relay_id"])
    changes = await master.history.state_changes(record.relay_id, MOST)
    return RelayHistory(
        relay_id=record.relay_id,
        name=record.name,
        changes=tuple(
            RelayStateChange(
                at=change.at_s,
                before=change.before,
                after=change.after,
                causes=tuple(change.causes.split(",")) if change.causes else (),
                text=change.text,
            )
            for change in changes
        ),
    )


async def _news(master: Master, request: web.Request) -> RelayNewsPage:
    limit = limit_of(request, MOST, MOST)
    found = await master.history.changes_after(number_of(request, "after"), limit)
    records = {change.relay_id: master.registry.record(change.relay_id) for _, change in found}
    names = {relay_id: record.name if record else "" for relay_id, record in records.items()}
    return RelayNewsPage(
        news=tuple(
            RelayNews(
                id=number,
                at=change.at_s,
                relay_id=change.relay_id,
                name=names[change.relay_id],
                before=change.before,
                after=change.after,
                text=change.text,
            )
            for number, change in found
        )
    )


HEALTH_ROUTES: Final = (
    Route[Master](
        "GET",
        "/v1/admin/relay-news",
        (CallerKind.VIEWER,),
        _news,
        "Tell how the states of relays changed: behind `after`, or the last changes.",
        query=("after", "limit"),
        answer=RelayNewsPage,
        errors=(ErrorCode.INVALID_QUERY,),
    ),
    Route[Master](
        "GET",
        "/v1/relays/{relay_id}/history",
        (CallerKind.SERVICE, CallerKind.VIEWER),
        _history,
        "Tell when the state of a relay changed, and why.",
        answer=RelayHistory,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.UNKNOWN_RELAY),
    ),
)
