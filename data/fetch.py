"""Fetch: rows → checked pictures and a ledger, part by part; what is finished is not done again."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.asking import Asking, Visit
from data.chat import picture_values
from data.checkers import BATCH, Checkers, Told
from data.entries import Entry, Source
from data.failures import DownloadError
from data.incoming import Incoming, Stretch
from data.jobs import Checking, CheckJob
from data.ledger import PART_ROWS, Found, Ledger, Lost, Record, Summary
from data.originals import unchanged
from data.parts import ALL
from data.parts import Part as Share
from data.pending import Ask, Bring, Part, PartReader, Pending
from data.places import PlaceError, copy_here
from data.probe import Probe, ProbeFailed
from data.progress import Report
from data.schema import Rejected
from data.taking import KEEP, MAX_PIXELS, Rewriting
from data.urls import UrlStore

if TYPE_CHECKING:
    from data.download import Downloader

PARTS_AT_ONCE = 16  # so that a slow host's URLs do not keep the others waiting
BETWEEN_PARTS, BETWEEN_PARTS_S = 400, 0.5  # rows with URLs that get done, or time that passes, before more are begun
PART_CHARACTERS = 4_000_000  # a part with more text counts for several
_VERSION = 2


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
    rewriting: Rewriting = KEEP
    asking: Asking = field(default_factory=Asking)

    def fingerprint(self) -> str:
        """Of what changes results; how servers are asked only changes whether there is one."""
        about = [_VERSION, PART_ROWS, self.pictures, self.chat, self.max_pixels, asdict(self.rewriting)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


@dataclass(slots=True, kw_only=True)
class FetchCounts:
    """What a run of fetch did."""

    rows: int = 0
    parts: int = 0
    parts_written: int = 0
    checked: int = 0
    """Pictures that were asked for or looked at in this run."""
    urls: int = 0
    """Pictures that were to be downloaded, in this run or an earlier one."""
    failed: Counter[str] = field(default_factory=Counter)
    """Class of failure → URLs."""


def fetch(
    entries: Iterator[Entry],
    ledger: Ledger,
    settings: FetchSettings,
    pool: Executor,
    workers: int,
    source: Source,
    report: Report,
    share: Share = ALL,
) -> FetchCounts:
    """Bring the ledger up to date with the catalogue.

    Arguments: the catalogue's rows in order; the ledger; settings; a pool of `workers` processes; the catalogue
    for the record; a function that is told how many more rows, pictures, bytes and rejected rows there are; which of
    several machines this is, each of which fetches every n-th part of the ledger.
    Returns: counts. The ledger, or this machine's share of it, is complete when this returns, and says so.
    Raises ProbeFailed.
    """
    store = UrlStore(ledger.downloads / f"urls{share.suffix}.sqlite", settings.fingerprint())
    reading = ThreadPoolExecutor(1)
    try:
        return asyncio.run(
            _Fetch(ledger, settings, pool, store, report, share).run(entries, max(workers, 1), source, reading)
        )
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, ProbeFailed):
            store.remove(error.urls)
        raise error from group
    finally:
        reading.shutdown(wait=True, cancel_futures=True)
        store.close()


def _first(error: BaseException) -> BaseException:
    """What went wrong first, out of the groups that tasks wrap it in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Fetch:
    def __init__(
        self,
        ledger: Ledger,
        settings: FetchSettings,
        pool: Executor,
        store: UrlStore,
        report: Report,
        share: Share,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._pool = pool
        self._store = store
        self._report = report
        self._share = share
        self._counts = FetchCounts()
        self._rows_failed = 0
        folder, volumes = (ledger.downloads / f"{name}{share.suffix}" for name in ("incoming", "volumes"))
        self._incoming = Incoming(folder, volumes, store.commit)
        self._probe = Probe(settings.asking.probe)
        self._flying: dict[str, list[Told]] = {}
        """URL that is asked for → who is to be told."""
        self._downloader: Downloader | None = None
        self._begun = self._done = self._wanted = 0
        self._moved = asyncio.Event()

    async def run(
        self, entries: Iterator[Entry], workers: int, source: Source, reading: ThreadPoolExecutor
    ) -> FetchCounts:
        settings, fingerprint = self._settings, self._settings.fingerprint()
        self._ledger.folder.mkdir(parents=True, exist_ok=True)
        reader = PartReader(
            lambda values: picture_values(values, settings.pictures, settings.chat),
            entries,
            self._ledger,
            settings.image_root,
            self._incoming.folder,
        )
        slots, loop = asyncio.Semaphore(PARTS_AT_ONCE), asyncio.get_running_loop()
        checking = Checking(
            downloads=str(self._ledger.downloads),
            max_pixels=settings.max_pixels,
            max_bytes=settings.asking.limits.max_bytes,
            rewriting=settings.rewriting,
        )
        self._checkers = Checkers(self._pool, workers, checking, self._store, self._incoming)

        async def do(part: Part, slots_taken: int) -> None:
            try:
                await self._part(part, fingerprint)
            finally:
                for _ in range(slots_taken):
                    slots.release()

        # Should one task fail, the group ends the others: nothing goes on behind an error's back.
        async with AsyncExitStack() as self._stack, asyncio.TaskGroup() as group:
            self._stack.callback(self._incoming.close)
            checkers = group.create_task(self._checkers.run())
            async with asyncio.TaskGroup() as parts:
                while True:
                    await slots.acquire()
                    if not self._share.has(self._counts.parts):
                        skipped = await loop.run_in_executor(reading, reader.skip)
                        slots.release()
                        if not skipped:
                            break
                        self._counts.rows += skipped
                        self._counts.parts += 1
                        continue
                    part = await loop.run_in_executor(reading, reader.read, fingerprint)
                    if not part.rows:
                        break
                    self._counts.rows += len(part.rows)
                    self._counts.parts += 1
                    self._begun += len(part.rows)
                    more = min(part.characters // PART_CHARACTERS, PARTS_AT_ONCE - 1)
                    parts.create_task(do(part, 1 + more))
                    for _ in range(more):
                        await slots.acquire()
                    if part.asks:
                        await self._get_on()
            checkers.cancel()
        self._incoming.clear()
        summary = Summary(
            rows=self._counts.rows,
            parts=self._counts.parts,
            fingerprint=fingerprint,
            source=source.name,
            columns=list(source.columns),
            pictures=list(settings.pictures),
            urls=self._counts.urls,
            failed=dict(sorted(self._counts.failed.items())),
            rows_failed=self._rows_failed,
        )
        if not self._share.whole:
            self._ledger.finish_share(self._share, summary)
        elif self._ledger.summary() != summary:
            self._ledger.finish(summary)
        return self._counts

    async def _get_on(self) -> None:
        """Let some rows get done: to begin thousands in one go takes long, and no answer is heard meanwhile."""
        self._wanted = self._done + BETWEEN_PARTS
        self._moved.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), BETWEEN_PARTS_S)

    async def _part(self, part: Part, fingerprint: str) -> None:
        here = [
            (row, place) for row in part.rows for place, one in enumerate(row.pictures) if isinstance(one, CheckJob)
        ]
        async with asyncio.TaskGroup() as group:
            for start in range(0, len(here), BATCH):
                group.create_task(self._files(part, here[start : start + BATCH]))
            for row in part.rows:
                if not row.left:
                    self._count(part, row)
                for place, one in enumerate(row.pictures):
                    if isinstance(one, Ask):
                        self._ask(group, part, row, place, one)
                    elif isinstance(one, Bring):
                        group.create_task(self._bring(part, row, place, one))
            await part.done.wait()
        records = [_record(row) for row in part.rows]
        if records != part.old:
            self._ledger.reopen(self._share)
            await asyncio.to_thread(self._ledger.write, part.number, records, fingerprint)
            self._counts.parts_written += 1

    def _settle(self, part: Part, row: Pending, place: int, outcome: Found | Lost) -> None:
        if row.settle(place, outcome):
            self._count(part, row)

    def _count(self, part: Part, row: Pending) -> None:
        """Report a row that is done."""
        part.count()
        self._done += 1
        if self._done in (self._wanted, self._begun):
            self._moved.set()
        found = [one for one in row.pictures if isinstance(one, Found)]
        gone = [one for one in row.pictures if isinstance(one, Lost)]
        by_download = [one.reason for one in gone if one.by_download]
        self._counts.urls += sum([one.attempts > 0 for one in found], len(by_download))
        if by_download:
            self._counts.failed.update(by_download)
            self._rows_failed += 1
        self._report(
            1,
            pictures=len(found),
            bytes=sum([one.bytes for one in found]),
            rejected=int(bool(gone) or isinstance(row.entry, Rejected)),
        )

    async def _files(self, part: Part, here: list[tuple[Pending, int]]) -> None:
        """Have files checked that are there: many at once, as a task for each costs as much as a small picture."""
        jobs = [job for row, place in here if isinstance(job := row.pictures[place], CheckJob)]
        self._counts.checked += len(jobs)
        outcomes = await self._checkers.check_all(jobs)
        for (row, place), outcome in zip(here, outcomes, strict=True):
            self._settle(part, row, place, outcome)

    async def _bring(self, part: Part, row: Pending, place: int, one: Bring) -> None:
        self._counts.checked += 1
        try:
            await asyncio.to_thread(copy_here, one.url, Path(one.job.path), self._settings.asking.limits.max_bytes)
        except (OSError, PlaceError) as error:
            Path(one.job.path).unlink(missing_ok=True)
            reason = "missing-file" if isinstance(error, FileNotFoundError) else "unreadable-file"
            self._settle(part, row, place, one.job.lost(reason, f"{one.job.url[:500]}: {error}"))
        else:
            await self._checkers.add(one.job, partial(self._settle, part, row, place))

    def _ask(self, group: asyncio.TaskGroup, part: Part, row: Pending, place: int, ask: Ask) -> None:
        """Settle a URL by what became of it earlier, or begin to ask; once in a run, however many rows have it."""
        flying = self._flying.get(ask.url)
        if flying is not None:
            flying.append(partial(self._settle, part, row, place))
            return
        earlier, fresh = self._store.get(ask.url) or (ask.earlier, False)
        if isinstance(earlier, Found):
            stands = unchanged(self._ledger.downloads, earlier)
        else:
            stands = fresh or (earlier is not None and not self._settings.asking.again(earlier))
        if earlier is not None and stands:
            self._settle(part, row, place, earlier)
            return
        self._flying[ask.url] = [partial(self._settle, part, row, place)]
        group.create_task(self._download(ask, earlier is None and self._probe.enter()))

    def _answered(self, url: str, probed: bool, outcome: Found | Lost) -> None:
        for settle in self._flying.pop(url):
            settle(outcome)
        if probed and isinstance(outcome, Lost):
            self._probe.failed(outcome)

    async def _download(self, ask: Ask, probed: bool) -> None:
        self._counts.checked += 1
        visit = Visit()
        stretch, failure = self._incoming.find(ask.url, visit), None
        if stretch is None:
            try:
                downloader = self._downloader or await self._open_downloader()
                data = await downloader.fetch(ask.url, partial(self._incoming.beside, ask.url), visit)
                stretch = self._incoming.keep(ask.url, visit, data)
            except DownloadError as error:
                stretch, failure = Stretch(""), error
        job = CheckJob(
            url=ask.url,
            path=stretch.path,
            offset=stretch.offset,
            bytes=stretch.bytes,
            ours=True,
            asked=ask.asked,
            host=visit.host,
            robots=visit.robots,
            attempts=visit.attempts,
        )
        if failure is None:
            await self._checkers.add(job, partial(self._answered, ask.url, probed))
            return
        outcome = job.lost(failure.reason, f"{ask.url[:500]}: {failure.detail}")
        self._store.put(outcome)
        self._answered(ask.url, probed, outcome)

    async def _open_downloader(self) -> "Downloader":
        from data.download import Downloader  # brings aiohttp, for which a catalogue of files need not wait

        asking = self._settings.asking
        self._downloader = Downloader(asking.limits, asking.allowed_hosts, asking.robots)
        return await self._stack.enter_async_context(self._downloader)


def _record(row: Pending) -> Record:
    entry = row.entry
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
    gone = tuple(one for one in row.pictures if isinstance(one, Lost))
    return Record(
        row=entry.number,
        status="rejected" if gone else "ok",
        stage="fetch" if gone else "",
        reason=gone[0].reason if gone else "",
        detail=gone[0].detail if gone else "",
        values=entry.values,
        pictures=tuple(one for one in row.pictures if isinstance(one, Found)),
        lost=gone,
    )
