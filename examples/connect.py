"""Call a user and talk to them: send three datagrams, print what comes back.

Make the account and start the other side (listen.py) first::

    wavry-peer --gateway https://gateway.example register alice
    WAVRY_PASSWORD=… python examples/connect.py https://gateway.example alice bob
"""

import asyncio
import os
import sys

import wavry_peer


async def main(gateway_url: str, username: str, callee: str) -> None:
    """Call `callee`, and end the session after three answers."""
    credentials = (username, os.environ["WAVRY_PASSWORD"])
    async with wavry_peer.connect(gateway_url, callee, credentials=credentials) as session:
        for number in range(3):
            print((await ask(session, f"{username} {number}".encode())).decode())
        print("over", session.statistics().path)


async def ask(session: wavry_peer.Session, question: bytes) -> bytes:
    """Send a datagram and wait for the answer, again each second: a datagram may be lost."""
    while True:
        await session.send(question)
        try:
            async with asyncio.timeout(1.0):
                # The answer to an earlier try of another question may still be on its way.
                while not (answer := await session.receive()).endswith(question):
                    pass
                return answer
        except TimeoutError:
            continue


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except wavry_peer.WavryError as error:
        sys.exit(f"{type(error).__name__}: {error}")
