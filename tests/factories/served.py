"""A folder served over HTTP with range requests, and with failures on demand."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served:
    """What a test looks at and sets."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.requests: list[tuple[str, str | None]] = []
        """Path and range of each request that was answered well."""
        self.refused = 0
        """Requests that were not."""
        self.status = 503
        self.refusing = 0
        """Further requests that will not be."""
        self._fails_until = 0.0

    def fail_for(self, seconds: float, status: int = 503) -> None:
        """Answer with an error for a while."""
        self.status, self._fails_until = status, time.monotonic() + seconds

    def fails(self) -> bool:
        """Whether the next request is refused."""
        if self.refusing:
            self.refusing -= 1
            return True
        return time.monotonic() < self._fails_until


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder within the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def answer(self, body: bool) -> None:
            path = site.folder / self.path.lstrip("/")
            status = site.status if site.fails() else 200 if path.is_file() else 404
            content = path.read_bytes() if status == 200 else b""
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            headers = {"Accept-Ranges": "bytes"}
            if status == 200 and asked:
                start, last = map(int, asked.groups())
                headers["Content-Range"] = f"bytes {start}-{min(last, len(content) - 1)}/{len(content)}"
                status, content = 206, content[start : last + 1]
            if status < 400:
                site.requests.append((self.path.lstrip("/"), self.headers.get("Range")))
            else:
                site.refused += 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        site = Served(folder, f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
