"""Streams media from one peer to the other and measures it.

The sender keeps to the clock: frame n is due at a fixed time, and is sent as soon as possible after
it, never left out.  When the machine is late it sends the late frames at once, with the times at
which they were due, so that nothing of the wait is missing from the latencies.
"""

import random
from typing import Final

import gevent

from loadtest.run.load_run import LoadFailure, LoadRun, now_ns

from .meter import StreamMeter
from .peers import MediaPeer
from .shape import echo_of, read_packet

__all__ = ["MediaStream"]

ONE_WAY: Final = "UDP frame one-way"
ROUND_TRIP: Final = "UDP frame round trip"
FRAME_LATE: Final = "frame not whole in time"
FRAME_CUT: Final = "frame not whole at the end of its stream"

_SECOND_NS: Final = 1_000_000_000


class MediaStream:
    """Media from `source` to `sink`; the sink answers each whole frame with a small datagram.

    Args:
        run: where to measure.
        source: sends.
        sink: receives.
    """

    def __init__(self, run: LoadRun, source: MediaPeer, sink: MediaPeer) -> None:
        self._run = run
        self._source = source
        self._sink = sink
        self._deadline_ns = int(run.options.frame_deadline_s * _SECOND_NS)
        self._meter = StreamMeter(run.totals.media, self._deadline_ns)
        source.on_payload = self._on_echo
        sink.on_payload = self._on_media

    def stream(self, seconds: float) -> None:
        """Send for so long, or until the relay asks its peers to leave.

        Raises:
            LoadFailure: a path was lost.
        """
        shape, source, sink = self._run.options.media, self._source, self._sink
        # Not all users send their frames in the same instant.
        started_ns = now_ns() + random.randrange(_SECOND_NS // shape.fps)
        end_ns = started_ns + int(seconds * _SECOND_NS)
        frame = 0
        while (due_ns := started_ns + shape.due_ns(frame)) < end_ns:
            gevent.sleep(max(0, due_ns - now_ns()) / _SECOND_NS)
            first = self._meter.next_number
            self._meter.frame_sent(frame, shape.packets_of(frame), due_ns, now_ns())
            source.send(shape.payloads(frame, first, due_ns))
            frame += 1
            for peer in (source, sink):
                peer.tick()
                failure = peer.failure()
                if failure is not None:
                    raise LoadFailure(failure)
            self._fail_frames(self._meter.overdue(now_ns()), FRAME_LATE)
            if source.channel.wants_leave or sink.channel.wants_leave:
                return

    def finish(self) -> None:
        """Wait for what is on its way, as long as for any frame, and close the accounts."""
        give_up_ns = now_ns() + self._deadline_ns
        while not self._meter.is_complete and now_ns() < give_up_ns:
            gevent.sleep(0.01)
            for peer in (self._source, self._sink):
                peer.tick()
        self._fail_frames(self._meter.close(), FRAME_CUT)

    def _on_media(self, payload: bytes, now: int) -> None:
        packet = read_packet(payload)
        if packet is None or packet.is_echo:
            self._run.totals.media.foreign += 1
        elif self._meter.receive(packet, now):
            self._run.measured(ONE_WAY, now - packet.due_ns)
            self._sink.send([echo_of(packet)])

    def _on_echo(self, payload: bytes, now: int) -> None:
        packet = read_packet(payload)
        if packet is None or not packet.is_echo:
            self._run.totals.media.foreign += 1
        else:
            self._run.measured(ROUND_TRIP, now - packet.due_ns)

    def _fail_frames(self, count: int, reason: str) -> None:
        for _ in range(count):
            self._run.measured(ONE_WAY, self._deadline_ns, reason)
