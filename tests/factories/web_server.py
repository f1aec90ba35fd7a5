"""A web server on loopback that answers as well or as badly as a test asks it to."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from types import TracebackType

Handler = Callable[["WebServer", asyncio.StreamWriter, str], Awaitable[None]]


class WebServer:
    """Serves raw answers by path, in a thread of its own; a context manager."""

    def __init__(self, handler: Handler, robots: str | None = None) -> None:
        """`handler` writes the answer to a path (without its slash); `robots`: robots.txt, 404 if None."""
        self._handler = handler
        self._robots = robots
        self.asked: list[str] = []
        """Paths in the order of the requests, robots.txt aside."""
        self.robots_asked = 0
        self.agents: set[str] = set()
        self.connections = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    @property
    def times(self) -> Counter[str]:
        """Path → requests."""
        return Counter(self.asked)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"http://{host}:{self.port}/{path}"

    def __enter__(self) -> "WebServer":
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _run(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # The other side may hang up at any time, and the test may end first: neither is a failure of the server.
        with (
            closing(writer),
            suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError),
        ):
            while True:
                await self._answer((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"), writer)

    async def _answer(self, request: str, writer: asyncio.StreamWriter) -> None:
        path = request.split(" ", 2)[1].lstrip("/")
        for line in request.splitlines():
            if line.lower().startswith("user-agent:"):
                self.agents.add(line.partition(":")[2].strip())
        if path == "robots.txt":
            self.robots_asked += 1
            text = self._robots
            writer.write(answer(404) if text is None else answer(200, text.encode(), kind="text/plain"))
        else:
            self.asked.append(path)
            await self._handler(self, writer, path)
        await writer.drain()


def answer(status: int, body: bytes = b"", kind: str = "image/jpeg", **headers: str) -> bytes:
    """A whole answer, ready to be sent; underscores in header names stand for hyphens."""
    fields = {"Content-Length": str(len(body)), "Content-Type": kind}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} ."] + [f"{name}: {value}" for name, value in fields.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
