"""Shards elsewhere (`s3://`, `https://`, what else fsspec knows): ranges of them, or whole ones through the cache."""

import asyncio
import hashlib
import json
import os
import queue
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.index import IndexEntry
from data.manifest import REMOTE_FILE, Manifest
from data.schema import UserError
from data.whole import whole_file, write_whole
from train.pipeline.cache import PIECE, ShardCache
from train.pipeline.events import say
from train.pipeline.patience import Patience, ReadError, describe
from train.pipeline.storage import Gone, Storage, read_range

REQUESTS = 8  # at once, of one worker
PASSING_STATUS = (408, 425, 429)
CLIENTS = ("aiohttp", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "requests", "gcsfs")
CONNECT_S, SILENT_S = 20, 60


def is_remote(where: str) -> bool:
    """Whether shards are named by an address and not by a folder."""
    return "://" in where


def may_pass(error: Exception) -> bool:
    """Whether a request that failed so may succeed later."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError | MemoryError | ImportError):
        return False
    return (
        isinstance(error, OSError | EOFError | TimeoutError | asyncio.TimeoutError)
        or isinstance(status, int)
        or type(error).__module__.partition(".")[0] in CLIENTS
    )


class RemoteFiles:
    """Files under an address, failures sat out."""

    def __init__(self, url: str, patience: Patience) -> None:
        """Raises UserError for an address that nothing installed here can read."""
        import fsspec

        self.url = url.rstrip("/")
        self._patience = patience
        options: dict[str, Any] = {"use_listings_cache": False}
        if url.startswith(("http://", "https://")):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        try:
            self._system, root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise UserError(f"data.shards: {url} cannot be read here: {error}") from error
        self._root = root.rstrip("/")

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, fewer at its end. Raises Gone and ReadError."""
        content = self._call(name, lambda: self._system.cat_file(f"{self._root}/{name}", start=start, end=end))
        # A server that knows no ranges sends the whole file.
        return content if len(content) <= end - start else content[start:end]

    def whole(self, name: str) -> bytes:
        """All of a small file."""
        return self._call(name, lambda: self._system.cat_file(f"{self._root}/{name}"))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._call(name, lambda: self._system.info(f"{self._root}/{name}"))["size"])

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file here, whole or not at all."""
        size = self.size(name)
        with whole_file(path) as stream:
            for start in range(0, size, PIECE):
                stream.write(self.read(name, start, min(start + PIECE, size)))

    def _call(self, name: str, action: Any) -> Any:
        where = f"{self.url}/{name}"
        try:
            return self._patience.call(action, kind="remote", where=where, passes=may_pass)
        except FileNotFoundError as error:
            raise Gone("it is not there") from error
        except Exception as error:
            if isinstance(error, ReadError) or (not isinstance(error, OSError) and not hasattr(error, "status")):
                raise
            raise ReadError(f"{where}: {describe(error)}; see to it, then start the run again, it goes on") from error


def default_cache() -> Path:
    """A folder for shards on a disk of this node."""
    return Path(tempfile.gettempdir()) / f"shards-{os.getuid()}"


def mirror(url: str, cache: Path, patience_s: float) -> Path:
    """A folder with the manifest and the indexes of shards that are elsewhere; processes of a node share it.

    Raises UserError where there are none, or they cannot be had.
    """
    folder = cache / f"remote-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    files = RemoteFiles(url, Patience(patience_s))
    try:
        listed = files.whole("manifest.json")
    except Gone as error:
        raise UserError(f"data.shards: no shards at {url}: it has no manifest.json") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        splits = json.loads(listed)["shards"]
        own = folder / "manifest.json"
        fresh = not own.is_file() or own.read_bytes() != listed
        for split in splits:
            index = folder / split / "index.arrow"
            if fresh or not index.is_file():
                files.fetch(f"{split}/index.arrow", index)
        if fresh:
            write_whole(folder / REMOTE_FILE, json.dumps({"url": files.url}).encode())
            write_whole(own, listed)
    except Gone as error:
        raise UserError(f"data.shards: {url} lacks an index.arrow that its manifest names; build it again") from error
    except (KeyError, ValueError) as error:
        raise UserError(f"data.shards: {url}/manifest.json is damaged ({error}); build the shards again") from error
    return folder


def origin(split_folder: Path) -> str | None:
    """Where a split's shards are; None where they are in its folder."""
    file = split_folder.parent / REMOTE_FILE
    if not file.is_file():
        return None
    return f"{json.loads(file.read_bytes())['url']}/{split_folder.name}"


class RemoteShards:
    """The shards of one set that is elsewhere."""

    def __init__(self, url: str, folder: Path, storage: Storage, patience: Patience, max_open: int) -> None:
        self._files = RemoteFiles(url, patience)
        self._shards = {one["name"]: one for one in Manifest.load(folder.parent).shards[folder.name]}
        self._names = {f"{one['sha256']}.tar": name for name, one in self._shards.items()}
        cache = Path(storage.cache or default_cache())
        self._cache = ShardCache(
            cache, storage.cache_bytes, patience, lambda cached: self.prefetch([self._names[cached]])
        )
        self._patience = patience
        self._max_open = max_open
        self._open: OrderedDict[str, int] = OrderedDict()
        self._requests = ThreadPoolExecutor(REQUESTS, thread_name_prefix="requests")
        self._coming: dict[tuple[str, int], Future[bytes]] = {}
        self._wanted: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._fetcher: threading.Thread | None = None
        self.waited_s = 0.0

    def expect(self, entries: Sequence[tuple[str, IndexEntry]]) -> None:
        """Ask for what is not here, several at once."""
        self._coming.clear()
        for name, entry in entries:
            if self._descriptor(name) is None:
                self._coming[name, entry.offset] = self._requests.submit(self._range, name, entry)

    def read(self, name: str, entry: IndexEntry) -> bytes:
        begun = time.perf_counter()
        try:
            coming = self._coming.pop((name, entry.offset), None)
            if coming:
                return coming.result()
            descriptor = self._descriptor(name)
            if descriptor is not None:
                return read_range(descriptor, entry.length, entry.offset)
            return self._range(name, entry)
        finally:
            self.waited_s += time.perf_counter() - begun

    def read_again(self, name: str, entry: IndexEntry) -> bytes | None:
        """From its origin, once more: a transfer may have gone wrong. A cached file with other bytes is taken away."""
        begun = time.perf_counter()
        try:
            content = self._range(name, entry)
            descriptor = self._open.get(name)
            if descriptor is not None and read_range(descriptor, entry.length, entry.offset) != content:
                del self._open[name]
                why = f"is not as written at byte {entry.offset:,} (sample {entry.key!r})"
                self._cache.drop(self._cached(name), descriptor, why)
                os.close(descriptor)
            return content
        except Gone:
            return None
        finally:
            self.waited_s += time.perf_counter() - begun

    def prefetch(self, names: Sequence[str]) -> None:
        """Have whole shards put into the cache in the background, in this order."""
        for name in names:
            self._wanted.put(name)
        if names and self._fetcher is None:
            self._fetcher = threading.Thread(target=self._fetch_all, daemon=True, name="fetcher")
            self._fetcher.start()

    def _fetch_all(self) -> None:
        while (name := self._wanted.get()) is not None:
            try:
                self._cache.fill(
                    self._cached(name),
                    self._shards[name]["bytes"],
                    lambda start, end, name=name: self._files.read(name, start, end),  # type: ignore[misc]
                )
            except (Gone, UserError, OSError) as error:
                # Those who need its samples will find the same, and say which they are.
                say(f"data: {self._files.url}/{name} was not fetched ahead: {error}")

    def _range(self, name: str, entry: IndexEntry) -> bytes:
        return self._files.read(name, entry.offset, entry.offset + entry.length)

    def _cached(self, name: str) -> str:
        return f"{self._shards[name]['sha256']}.tar"

    def _descriptor(self, name: str) -> int | None:
        """Of a shard in the cache."""
        if name in self._open:
            self._open.move_to_end(name)
            self._cache.used(self._cached(name))
            return self._open[name]
        descriptor = self._cache.open(self._cached(name), self._shards[name]["bytes"])
        if descriptor is not None:
            if len(self._open) >= self._max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = descriptor
        return descriptor

    def close(self) -> None:
        self._wanted.put(None)
        self._requests.shutdown(wait=False, cancel_futures=True)
        while self._open:
            os.close(self._open.popitem()[1])
