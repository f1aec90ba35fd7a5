"""python -m data.build: a catalogue → shards, in three steps that can each be stopped and started again."""

import gc
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from data.workers import start_forkserver

    start_forkserver()  # so that workers' imports run beside this program's own
    gc.disable()  # until `run_lightly`: what is imported stays, and to look through it again took a tenth of the start

import errno
import fcntl
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import islice
from threading import Thread

from data.build_options import STEPS, BuildSettings, parse
from data.fetch import FetchCounts, FetchSettings, fetch
from data.ledger import Ledger
from data.light import leave, run_lightly
from data.mapping import Mapping
from data.mapping_file import check_columns, load_mapping
from data.outcome import Outcome
from data.parts import ALL, Part
from data.places import is_folder, is_remote
from data.progress import Report, progress
from data.schema import UserError
from data.sources import open_source
from data.whole import remove_leftovers
from data.workers import worker_pool

DRY_RUN_ROWS = 20
LATER = ("data.finish", "data.build_report")  # modules that the fetch can do without
# Of the machine, not of the program: said without a traceback.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def build(settings: BuildSettings) -> Outcome:
    """Run the steps of a build; what an earlier run finished is taken over.

    Raises UserError: wrong paths, columns or mappings, too many rejected rows, another build in the same folder, a
    worker that died. Whatever was finished by then is kept.
    """
    if settings.preset is None:
        raise UserError("--preset is needed: a preset's name or a mapping of your own; leave out --output to get one")
    mapping = load_mapping(settings.preset)
    if settings.output.exists() and not settings.output.is_dir():
        raise UserError(f"{settings.output} is a file; --output names a folder, which is made if it is not there")
    ledger = Ledger(settings.output / "downloads")
    outcome = Outcome()
    with _alone(settings.output / "downloads", settings.part):
        if settings.part.whole:  # nobody else writes here: what is half-written was left by a kill
            notes = ledger.downloads.glob("shards/*")
            for folder in (settings.output, ledger.folder, ledger.downloads / "plan", *notes):
                remove_leftovers(folder)
        if settings.join:
            ledger.join()
        if "fetch" in settings.steps:
            with worker_pool(settings.workers) as pool:
                outcome.fetched = _fetch(settings, mapping, ledger, pool)
            outcome.changed |= outcome.fetched.parts_written > 0
        if "split" in settings.steps or "write" in settings.steps:
            from data.finish import finish

            finish(settings, mapping, ledger, outcome)
    return outcome


def dry_run(settings: BuildSettings) -> Path:
    """Build the first rows in a folder that is removed again; what they become is left as one page of HTML.

    Returns the page. Raises UserError as `build` does, but not for rows that are rejected.
    """
    from data.show import PAGE_SAMPLES, write_page

    page = settings.output / "dry-run.html"
    with tempfile.TemporaryDirectory() as folder:
        build(
            replace(
                settings,
                output=Path(folder) / settings.output.name,
                upload=None,
                steps=STEPS,
                part=ALL,
                join=False,
                limit=settings.limit or DRY_RUN_ROWS,
                max_rejected=1.0,
                max_failed_downloads=1.0,
            )
        )
        write_page(Path(folder) / settings.output.name, page, PAGE_SAMPLES)
    return page


@contextmanager
def _alone(downloads: Path, part: Part) -> Iterator[None]:
    """Keep a second build out of the same folder for as long as this one runs; different shares may run together."""
    downloads.mkdir(parents=True, exist_ok=True)
    with (downloads / "lock").open("w") as lock, (downloads / f"lock-{part.name}").open("w") as share:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if part.whole else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another build is at work in {downloads.parent}; wait for it, or name another --output"
            ) from error
        yield


def _fetch(settings: BuildSettings, mapping: Mapping, ledger: Ledger, pool: Executor) -> FetchCounts:
    if settings.source is None:
        raise UserError("--source is needed to fetch: a table's file, a folder, a pattern, a URL, or hf:NAME")
    source = open_source(settings.source, settings.encoding)
    check_columns(mapping, source.columns, settings.source)
    root = settings.image_root or source.picture_root
    if not is_folder(root):
        raise UserError(
            f"{root}: there is no such folder; --image-root names the one where relative picture paths start"
        )
    fetching = FetchSettings(
        pictures=tuple(mapping.pictures),
        chat=mapping.chat,
        image_root=root if is_remote(root) else str(Path(root).resolve()),
        rewriting=settings.rewriting,
        asking=settings.asking,
    )
    # Without a limit the rows are not known before the last one is read; those of files are guessed by their bytes.
    with progress("fetch", "rows", settings.limit or source.expected_rows) as report:
        counts = fetch(
            map(mapping.screen, islice(source.entries(), settings.limit)),
            ledger,
            fetching,
            pool,
            settings.workers,
            source,
            _importing_beside(report),
            settings.part,
        )
    if counts.rows == 0:
        raise UserError(f"{settings.source} has column names but no rows; name the right file")
    if counts.parts_written:
        (ledger.downloads / "plan" / "plan.json").unlink(missing_ok=True)
    return counts


def _importing_beside(report: Report) -> Report:
    """The same, but what is needed later is imported once the first rows are done: workers are busy by then."""
    imports = Thread(target=lambda: [import_module(name) for name in LATER], daemon=True)

    def told(more: int, **counts: int) -> None:
        if imports.ident is None:
            imports.start()
        report(more, **counts)

    return told


def main(arguments: list[str] | None = None) -> int:
    """Run a build from the command line. Returns the exit code: 0, 2 for what the user can mend, 130 when stopped."""
    settings = parse(arguments)
    start = time.monotonic()
    try:
        if settings.preset is None and settings.source is not None:
            from data.suggest import suggest_mapping

            print(suggest_mapping(open_source(settings.source, settings.encoding), settings.source), end="")
            return 0
        if settings.dry_run:
            print(f"{dry_run(settings)}: open it in a browser; nothing else was written")
            return 0
        outcome = build(settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        print(
            f"error: {error}; run the same command again once that is mended, what was finished is kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on, what was finished is kept", file=sys.stderr)
        return 130
    from data.build_report import report

    report(outcome, time.monotonic() - start, settings.upload or settings.output, settings.part)
    return 0


if __name__ == "__main__":
    run_lightly()
    leave(main())
