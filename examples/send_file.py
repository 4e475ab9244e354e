"""Send a file to a user; the same program receives it on the other side.

::

    WAVRY_PASSWORD=… python examples/send_file.py receive https://gateway.example bob alice inbox/
    WAVRY_PASSWORD=… python examples/send_file.py send https://gateway.example alice bob song.ogg

Any number of lost datagrams is made up for, and the receiver compares the SHA-256 before the file
gets its name.
"""

import asyncio
import os
import sys
from pathlib import Path

import wavry_peer


async def send(gateway_url: str, username: str, receiver: str, file: str) -> None:
    """Call `receiver` and send one file."""
    credentials = (username, os.environ["WAVRY_PASSWORD"])
    async with wavry_peer.connect(gateway_url, receiver, credentials=credentials) as session:
        sent = await wavry_peer.send_file(session, Path(file), on_progress=show)
    print(f"sent {sent.size_bytes} bytes in {sent.seconds:.1f} s, sha256 {sent.sha256}")


async def receive(gateway_url: str, username: str, sender: str, directory: str) -> None:
    """Wait for a call of `sender` and store one file."""
    credentials = (username, os.environ["WAVRY_PASSWORD"])
    async with wavry_peer.listen(gateway_url, accept={sender}, credentials=credentials) as calls:
        print("waiting for", sender, flush=True)
        async with await calls.accept() as session:
            received = await wavry_peer.receive_file(session, Path(directory))
    print(f"received {received.path}, sha256 {received.sha256}")


def show(done_bytes: int, total_bytes: int) -> None:
    """Show how far it is, on one line."""
    print(f"\r{done_bytes * 100 // max(total_bytes, 1)} %", end="", file=sys.stderr)


if __name__ == "__main__":
    work = {"send": send, "receive": receive}[sys.argv[1]]
    try:
        asyncio.run(work(*sys.argv[2:]))
    except wavry_peer.WavryError as error:
        sys.exit(f"{type(error).__name__}: {error}")
