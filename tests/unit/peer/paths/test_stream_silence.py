"""When a receiving peer shows itself."""

from wavry_peer.paths.stream_silence import MAX_WAIT_NS, MIN_WAIT_NS, StreamSilence

MS = 1_000_000
SECOND = 1000 * MS


def after(count: int, spacing_ns: int) -> tuple[StreamSilence, int]:
    """A silence after so many datagrams, and when the last one came."""
    silence = StreamSilence()
    for number in range(count):
        silence.received(SECOND + number * spacing_ns)
    return silence, SECOND + (count - 1) * spacing_ns


def test_a_stream_that_stops_is_answered_soon_and_then_more_and_more_rarely() -> None:
    silence, last_ns = after(100, 5 * MS)
    sent_ns, shown = 0, []
    while (due_ns := silence.due_ns(sent_ns)) is not None:
        silence.shown()
        sent_ns = due_ns
        shown.append((due_ns - last_ns) // MS)
    assert shown == [150, 450, 1050, 2250, 4650, 9450]
    silence.received(last_ns + 10 * SECOND)
    assert silence.due_ns(sent_ns) is None, "one datagram is no stream"


def test_a_steady_stream_is_never_answered() -> None:
    for spacing_ns in (MS, 20 * MS, 66 * MS, 200 * MS, 900 * MS):
        silence, _ = after(50, spacing_ns)
        for number in range(50, 500):
            due_ns = silence.due_ns(0)
            assert due_ns is not None
            assert due_ns > SECOND + number * spacing_ns
            silence.received(SECOND + number * spacing_ns)


def test_a_few_datagrams_and_slow_ones_are_no_stream() -> None:
    assert StreamSilence().due_ns(0) is None
    assert after(3, 5 * MS)[0].due_ns(0) is None
    assert after(100, 2 * SECOND)[0].due_ns(0) is None


def test_whatever_we_send_shows_us_as_well() -> None:
    silence, last_ns = after(20, 5 * MS)
    sent_ns = last_ns + 100 * MS
    assert silence.due_ns(sent_ns) == sent_ns + MIN_WAIT_NS
    assert MIN_WAIT_NS < MAX_WAIT_NS
