"""Fetch: rows → checked pictures and a ledger, part by part; what is finished is not done again."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from urllib.parse import urlsplit

from data.chat import picture_values
from data.checking import CheckJob, Failure, check_files
from data.download import Downloader, DownloadError, DownloadLimits
from data.entries import Entry, Source
from data.images import MAX_PIXELS
from data.ledger import PART_ROWS, Found, Ledger, Record, Summary
from data.locate import Inside, Local, Remote, Stored, locate, without_bytes
from data.places import PlaceError, copy_here
from data.schema import Rejected

BATCH = 32  # pictures a worker is given at once
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """What decides which bytes are fetched and what is taken for a picture."""

    pictures: tuple[str, ...]
    """Columns."""
    chat: str | None = None
    """Column of conversations, which name pictures too."""
    image_root: str
    """An absolute path or a URL; where relative paths start, and which they must not leave."""
    max_pixels: int = MAX_PIXELS
    limits: DownloadLimits = field(default_factory=DownloadLimits)
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts that may have addresses that are not public."""

    def fingerprint(self) -> str:
        """Of what changes results; time limits, retries and allowed hosts only change whether there is one."""
        about = [_VERSION, PART_ROWS, self.pictures, self.chat, self.image_root, self.max_pixels, self.limits.max_bytes]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@dataclass(slots=True, kw_only=True)
class FetchCounts:
    """What a run of fetch did."""

    rows: int = 0
    parts: int = 0
    parts_written: int = 0
    checked: int = 0
    """Rows whose pictures were looked at in this run."""


def fetch(
    entries: Iterator[Entry],
    ledger: Ledger,
    settings: FetchSettings,
    pool: Executor,
    workers: int,
    source: Source,
    report: Callable[[int], None],
) -> FetchCounts:
    """Bring the ledger up to date with the catalogue.

    Arguments: the catalogue's rows in order; the ledger; settings; a pool of `workers` processes; the catalogue
    for the record; a function that is told how many more rows are done.
    Returns: counts. The ledger is complete when this returns, and says so.
    """
    try:
        return asyncio.run(_Fetch(ledger, settings, pool, report).run(entries, max(workers, 1), source))
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Fetch:
    def __init__(self, ledger: Ledger, settings: FetchSettings, pool: Executor, report: Callable[[int], None]) -> None:
        self._ledger = ledger
        self._settings = settings
        self._pool = pool
        self._report = report
        self._counts = FetchCounts()
        self._incoming = ledger.downloads / "incoming"
        self._names = count()

    async def run(self, entries: Iterator[Entry], workers: int, source: Source) -> FetchCounts:
        self._incoming.mkdir(parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        self._ledger.folder.mkdir(parents=True, exist_ok=True)
        slots = asyncio.Semaphore(workers + 1)

        async def do(part: int, listed: list[Entry]) -> None:
            try:
                await self._part(part, listed)
            finally:
                slots.release()

        # Should one part fail, the group ends the others: nothing goes on behind an error's back.
        self._downloader = Downloader(self._settings.limits, self._settings.allowed_hosts)
        async with self._downloader, asyncio.TaskGroup() as group:
            for part in count():
                await slots.acquire()
                listed = list(islice(entries, PART_ROWS))
                if not listed:
                    break
                self._counts.rows += len(listed)
                self._counts.parts += 1
                group.create_task(do(part, listed))
        summary = Summary(
            rows=self._counts.rows,
            parts=self._counts.parts,
            fingerprint=self._settings.fingerprint(),
            source=source.name,
            columns=list(source.columns),
            pictures=list(self._settings.pictures),
        )
        if self._ledger.summary() != summary:
            self._ledger.finish(summary)
        return self._counts

    async def _part(self, part: int, entries: list[Entry]) -> None:
        fingerprint = self._fingerprint(entries)
        old = self._ledger.read(part) if self._ledger.fingerprint(part) == fingerprint else []
        kept = {record.row: record for record in old if self._holds(record)}
        fresh = await self._records([entry for entry in entries if entry.number not in kept])
        self._counts.checked += len(fresh)
        records = sorted([*kept.values(), *fresh], key=lambda record: record.row)
        if records != old:
            self._ledger.reopen()
            self._ledger.write(part, records, fingerprint)
            self._counts.parts_written += 1
        self._report(len(entries))

    def _fingerprint(self, entries: list[Entry]) -> str:
        hasher = hashlib.sha256(self._settings.fingerprint().encode())
        for entry in entries:
            if isinstance(entry, Rejected):
                hasher.update(entry.to_json())
            else:
                hasher.update(json.dumps(entry.values, default=lambda data: hashlib.sha256(data).hexdigest()).encode())
        return hasher.hexdigest()

    def _holds(self, record: Record) -> bool:
        """Whether a row need not be looked at again: its pictures are still there, or its URLs were tried in vain.

        Local pictures that failed are looked at each time, as somebody may have mended them.
        """
        if record.status == "ok":
            return all(self._unchanged(picture) for picture in record.pictures)
        if record.stage != "fetch":
            return True
        urls = [str(value) for value in picture_values(record.values, self._settings.pictures, self._settings.chat)]
        if not any(url.startswith(("http://", "https://")) for url in urls):
            return False
        refused = record.reason == "refused-address"
        return not (refused and any(urlsplit(url).hostname in self._settings.allowed_hosts for url in urls))

    def _unchanged(self, picture: Found) -> bool:
        try:
            found = (self._ledger.downloads / picture.place).stat()
        except OSError:
            return False
        return found.st_size == picture.bytes and picture.mtime_ns in (0, found.st_mtime_ns)

    async def _records(self, entries: Sequence[Entry]) -> list[Record]:
        """Look at the pictures of some rows."""
        batch: list[tuple[CheckJob, asyncio.Future[Found | Failure]]] = []
        owners: list[tuple[Entry, list[asyncio.Future[Found | Failure]]]] = []
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:

            def flush() -> None:
                if batch:
                    group.create_task(self._check(list(batch)))
                    batch.clear()

            for entry in entries:
                results: list[asyncio.Future[Found | Failure]] = []
                owners.append((entry, results))
                if isinstance(entry, Rejected):
                    continue
                for value in picture_values(entry.values, self._settings.pictures, self._settings.chat):
                    where = locate(value, self._settings.image_root)
                    result: asyncio.Future[Found | Failure] = loop.create_future()
                    results.append(result)
                    if isinstance(where, Failure):
                        result.set_result(where)
                    elif isinstance(where, Remote):
                        group.create_task(self._download(where.url, result))
                    elif isinstance(where, Stored):
                        group.create_task(self._copy(where, result))
                    else:
                        batch.append((self._job(where), result))
                        if len(batch) == BATCH:
                            flush()
            flush()
        return [self._record(entry, [result.result() for result in results]) for entry, results in owners]

    def _job(self, where: Local | Inside) -> CheckJob:
        if isinstance(where, Inside):
            path = self._incoming / str(next(self._names))
            path.write_bytes(where.data)
            return self._arrived(path, where.name, 0)
        return CheckJob(
            url=where.name,
            path=where.path,
            ours=False,
            downloads=str(self._ledger.downloads),
            attempts=0,
            max_pixels=self._settings.max_pixels,
            max_bytes=self._settings.limits.max_bytes,
        )

    def _arrived(self, path: Path, name: str, attempts: int) -> CheckJob:
        return CheckJob(
            url=name,
            path=str(path),
            ours=True,
            downloads=str(self._ledger.downloads),
            attempts=attempts,
            max_pixels=self._settings.max_pixels,
            max_bytes=self._settings.limits.max_bytes,
        )

    async def _check(self, batch: list[tuple[CheckJob, "asyncio.Future[Found | Failure]"]]) -> None:
        jobs = [job for job, _ in batch]
        found = await asyncio.get_running_loop().run_in_executor(self._pool, check_files, jobs)
        for (_, result), one in zip(batch, found, strict=True):
            result.set_result(one)

    async def _download(self, url: str, result: "asyncio.Future[Found | Failure]") -> None:
        path = self._incoming / str(next(self._names))
        try:
            attempts = await self._downloader.fetch(url, path)
        except DownloadError as error:
            path.unlink(missing_ok=True)
            result.set_result(Failure(reason=error.reason, detail=f"{url[:500]}: {error.detail}"))
        else:
            await self._check([(self._arrived(path, url, attempts), result)])

    async def _copy(self, where: Stored, result: "asyncio.Future[Found | Failure]") -> None:
        path = self._incoming / str(next(self._names))
        try:
            await asyncio.to_thread(copy_here, where.url, path, self._settings.limits.max_bytes)
        except (OSError, PlaceError) as error:
            path.unlink(missing_ok=True)
            reason = "missing-file" if isinstance(error, FileNotFoundError) else "unreadable-file"
            result.set_result(Failure(reason=reason, detail=f"{where.name[:500]}: {error}"))
        else:
            await self._check([(self._arrived(path, where.name, 0), result)])

    def _record(self, entry: Entry, results: list[Found | Failure]) -> Record:
        if isinstance(entry, Rejected):
            return Record(
                row=entry.number,
                status="rejected",
                stage=entry.stage,
                reason=entry.reason,
                detail=entry.detail,
                values={},
                pictures=(),
            )
        values = {name: without_bytes(value) for name, value in entry.values.items()}
        failure = next((one for one in results if isinstance(one, Failure)), None)
        return Record(
            row=entry.number,
            status="rejected" if failure else "ok",
            stage="fetch" if failure else "",
            reason=failure.reason if failure else "",
            detail=failure.detail if failure else "",
            values=values,
            pictures=() if failure else tuple(one for one in results if isinstance(one, Found)),
        )
