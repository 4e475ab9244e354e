"""The supervisor's side of revocations over a world of tests."""

from pathlib import Path

from support.relay.world import World
from wavry_peer.protocol.http.relay_events import FOREVER_S, Revocation
from wavry_relay.identity import StateDirectory
from wavry_relay.master.revocations import RelayRevocations
from wavry_relay.shm.layout import REVOCATION_SLOTS
from wavry_relay.shm.tags import Tags


class GivenOrders:
    """The supervisor's side over the segment of a world."""

    def __init__(self, world: World, directory: Path, capacity: int = REVOCATION_SLOTS) -> None:
        self.world = world
        self.directory = directory
        self.kept = RelayRevocations(
            StateDirectory(directory),
            world.tables.revocations,
            Tags(world.segment),
            lambda: world.now.wall_ms // 1000,
            capacity=capacity,
        )
        self.kept.load()

    def row(
        self, kind: str, value: str, *, until: int | None = None, ttl: int = 3600
    ) -> Revocation:
        now_s = self.world.now.wall_ms // 1000
        until = (FOREVER_S if kind in ("jti", "session") else now_s) if until is None else until
        return Revocation(
            number=self.kept.number + 1, kind=kind, value=value, issued_until=until,
            expires_at=now_s + ttl,
        )  # fmt: skip

    def revoke(self, kind: str, value: str, **options: int) -> None:
        assert self.kept.take(self.row(kind, value, **options), "stream")

    def save(self) -> None:
        self.kept.write(self.kept.snapshot())
