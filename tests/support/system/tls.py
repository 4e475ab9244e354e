"""A TLS proxy in front of a service of plain HTTP, as an operator would run one."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def tls_proxy(context: ssl.SSLContext, backend_url: str) -> Iterator[str]:
    """Gives the https URL; everything that comes there goes to `backend_url`."""
    host, _, port = backend_url.removeprefix("http://").rpartition(":")
    loop = asyncio.new_event_loop()
    started: asyncio.Queue[int] = asyncio.Queue()
    stopping = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, back_writer), _copy(back_reader, writer))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        await started.put(server.sockets[0].getsockname()[1])
        await stopping.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        number = asyncio.run_coroutine_threadsafe(started.get(), loop).result(10)
        yield f"https://127.0.0.1:{number}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(10)
        loop.close()
