"""Refusals are told at once, folded in floods, and never with an address that can be found out."""

from collections.abc import Sequence

from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.operators.audit import AuditEntry
from wavry_cp.operators.refusals import MAX_ADDRESSES, Folder, Refusals
from wavry_peer.service.clock import Clock

DAY_S = 86_400
WALL_S = 20_000 * DAY_S


def note(folder: Folder, address: str = "198.51.100.7", *, at_s: float = 0.0, day: int = 0,
         action: str = "login_failed") -> AuditEntry | None:  # fmt: skip
    wall_s = WALL_S + day * DAY_S + int(at_s)
    return folder.note(
        action, address, "ann", "invalid_credentials", now_s=at_s + day * DAY_S, wall_s=wall_s
    )


def due(folder: Folder, at_s: float, **more: bool) -> list[AuditEntry]:
    return folder.due(now_s=at_s, wall_s=WALL_S + int(at_s), **more)


def test_the_first_is_told_at_once_and_the_rest_is_counted_by_the_minute():
    folder = Folder()
    first = note(folder)
    assert first is not None
    assert (first.action, first.target, first.outcome, first.reason) == (
        "login_failed", "ann", "invalid_credentials", "",
    )  # fmt: skip
    assert [note(folder, at_s=second) for second in range(1, 29)] == [None] * 28
    assert due(folder, 59) == []
    (count,) = due(folder, 60)
    assert (count.who, count.reason) == (first.who, "28 more within 60 s")
    assert note(folder, at_s=61) is None  # It goes on: a count a minute, no row each.
    assert [row.reason for row in due(folder, 120)] == ["1 more within 60 s"]
    assert due(folder, 180) == []
    assert len(folder) == 0
    assert note(folder, at_s=181) is not None


def test_many_addresses_share_one_row_and_other_kinds_are_not_hidden_by_them():
    folder = Folder()
    rows = [note(folder, f"203.0.113.{n}", at_s=n / 100) for n in range(200)]
    told = [row for row in rows if row is not None]
    assert len(told) == MAX_ADDRESSES + 1
    assert told[-1].who == "address:others"
    assert note(folder, action="bind_refused") is not None
    assert [row.reason for row in due(folder, 70)] == ["183 more within 60 s"]


def test_an_end_loses_no_count():
    folder = Folder()
    for second in range(3):
        note(folder, at_s=second)
    assert [row.reason for row in due(folder, 3, ending=True)] == ["2 more within 60 s"]


def test_an_address_is_a_hash_whose_key_is_new_each_day_and_of_each_start():
    folder, other = Folder(), Folder()
    today = note(folder)
    again = note(folder, action="bind_refused", at_s=5)
    assert due(folder, 70) == []
    tomorrow = note(folder, day=1)
    elsewhere = note(other)
    assert None not in (today, again, tomorrow, elsewhere)
    assert today is not None
    assert again is not None
    assert today.who == again.who
    assert len({row.who for row in (today, tomorrow, elsewhere) if row}) == 3
    assert "198.51.100" not in repr((today, tomorrow, folder._key))


class _Log:
    def __init__(self) -> None:
        self.rows: list[AuditEntry] = []
        self.away = False

    async def record_acts(self, entries: Sequence[AuditEntry]) -> None:
        if self.away:
            raise StoreUnavailableError("disk full")
        self.rows += entries


async def test_what_a_store_that_is_away_did_not_take_is_written_later():
    log = _Log()
    refusals = Refusals(log, Clock(), (), Folder())
    log.away = True
    refusals.note("login_failed", "198.51.100.7", "ann", "invalid_credentials")
    await refusals.write()
    assert log.rows == []
    log.away = False
    refusals.note("bind_refused", "198.51.100.7", "/ws", "invalid_token")
    await refusals.write()
    assert [row.action for row in log.rows] == ["login_failed", "bind_refused"]
    await refusals.write()
    assert len(log.rows) == 2
