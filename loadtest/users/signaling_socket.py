"""The signaling WebSocket of one user, for greenlets."""

import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent
import websocket
from gevent.queue import Empty, Queue

from loadtest.run.load_run import LoadFailure, now_ns
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http import signaling as s

from .service_calls import tls_context

__all__ = ["SignalingSocket"]

Wanted = TypeVar("Wanted", bound=s.Message)

CONNECT_TIMEOUT_S: Final = 10.0
MESSAGE_TIMEOUT_S: Final = 10.0
_SECOND_NS: Final = 1_000_000_000


class SignalingSocket:
    """An open connection to ``/ws`` of a gateway.

    A greenlet reads all the time, so that the gateway's pings are answered while nobody waits for
    a message.

    Args:
        gateway_url: ``https://`` or ``http://``.

    Raises:
        LoadFailure: no connection.
    """

    def __init__(self, gateway_url: str) -> None:
        try:
            self._socket = websocket.create_connection(
                "ws" + gateway_url.removeprefix("http") + "/ws",
                timeout=CONNECT_TIMEOUT_S,
                suppress_origin=True,
                redirect_limit=0,
                sslopt={"context": tls_context()},
            )
        except websocket.WebSocketBadStatusException as error:
            raise LoadFailure(f"WebSocket refused: http_{error.status_code}") from error
        except (websocket.WebSocketException, OSError) as error:
            raise LoadFailure(f"no WebSocket: {type(error).__name__}") from error
        self._socket.settimeout(None)
        self._inbox: Queue[Any] = Queue()
        self._reader = gevent.spawn(self._read)

    def send(self, message: s.Message) -> None:
        """Send a message.

        Raises:
            LoadFailure: the connection is gone.
        """
        try:
            self._socket.send(s.encode_message(message))
        except (websocket.WebSocketException, OSError) as error:
            raise LoadFailure("WebSocket lost") from error

    def expect(
        self,
        kind: type[Wanted],
        fits: Callable[[Wanted], bool] = lambda _message: True,
        *,
        timeout_s: float = MESSAGE_TIMEOUT_S,
    ) -> Wanted:
        """Wait for a message; others that come meanwhile are dropped.

        Raises:
            LoadFailure: an ERROR came (the reason is its code), the connection is gone, or nothing
                came in time.
        """
        deadline_ns = now_ns() + int(timeout_s * _SECOND_NS)
        while True:
            try:
                left_s = max(0.0, (deadline_ns - now_ns()) / _SECOND_NS)
                message = self._inbox.get(timeout=left_s)
            except Empty:
                raise LoadFailure(f"no {kind.__name__} within {timeout_s:g} s") from None
            if message is None:
                self._inbox.put(None)  # for whoever asks again
                raise LoadFailure("WebSocket lost")
            if isinstance(message, s.Error):
                raise LoadFailure(message.code)
            if isinstance(message, kind) and fits(message):
                return message

    def close(self) -> None:
        """Close the connection; again it does nothing."""
        self._reader.kill()  # first: two greenlets must not read one socket
        with contextlib.suppress(websocket.WebSocketException, OSError):
            self._socket.close(timeout=1)

    def _read(self) -> None:
        try:
            while frame := self._socket.recv():
                with contextlib.suppress(MessageError):  # of a later version: not for us
                    self._inbox.put(s.decode_server_message(frame))
        except (websocket.WebSocketException, OSError):
            pass  # whoever waits for a message is told
        finally:
            self._inbox.put(None)
