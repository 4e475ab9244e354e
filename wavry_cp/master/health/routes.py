"""``/v1/relays/{id}/history``: the changes of a relay's state."""

from typing import Final

from aiohttp import web

from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.master.master import Master
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relays import RelayHistory, RelayStateChange

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


HEALTH_ROUTES: Final = (
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
