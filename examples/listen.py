"""Take calls of one user, and greet whatever they send; Ctrl-C ends it.

::

    wavry-peer --gateway https://gateway.example register bob
    WAVRY_PASSWORD=… python examples/listen.py https://gateway.example bob alice
"""

import asyncio
import contextlib
import os
import sys

import wavry_peer


async def main(gateway_url: str, username: str, caller: str) -> None:
    """Serve each session of `caller` in a task of its own."""
    credentials = (username, os.environ["WAVRY_PASSWORD"])
    async with (
        # Whoever else calls is refused; "all" takes everybody, a function decides call by call.
        wavry_peer.listen(gateway_url, accept={caller}, credentials=credentials) as calls,
        asyncio.TaskGroup() as tasks,
    ):
        print("waiting for", caller, flush=True)
        async for session in calls:
            tasks.create_task(greet(session))


async def greet(session: wavry_peer.Session) -> None:
    """Answer each datagram until the other side ends the session."""
    async with session:
        async for datagram in session:
            with contextlib.suppress(wavry_peer.SessionClosedError):
                await session.send(b"hello, " + datagram)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
    except wavry_peer.WavryError as error:
        sys.exit(f"{type(error).__name__}: {error}")
