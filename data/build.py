"""python -m data.build: a catalogue → shards, in three steps that can each be stopped and started again."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import errno
import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from data.build_options import STEPS, BuildSettings, parse
from data.build_report import Outcome, report
from data.failures import counted, remedies
from data.fetch import FetchCounts, FetchSettings, fetch
from data.ledger import Ledger, Summary
from data.manifest import CHAT_TEMPLATES, Manifest, ManifestError
from data.mapping import Mapping, check_columns, load_mapping
from data.parts import ALL, Part
from data.places import is_folder, is_remote
from data.plan import Plan, PlanMissing, load_plan, save_plan
from data.progress import progress
from data.publish import publish, upload_bytes
from data.rejecting import RejectedRows
from data.schema import UserError
from data.show import PAGE_SAMPLES, write_page
from data.sources import open_source
from data.split import make_plan
from data.suggest import suggest_mapping
from data.tokens import Tokens
from data.whole import whole_file, write_whole
from data.workers import worker_pool
from data.write import write_shards

# Rows that are well and have no place of their own: no reason to doubt a catalogue.
SET_ASIDE = frozenset({"duplicate", "filtered", "leak"})
DRY_RUN_ROWS = 20
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
    with _alone(settings.output / "downloads", settings.part), worker_pool(settings.workers) as pool:
        if settings.join:
            ledger.join()
        if "fetch" in settings.steps:
            outcome.fetched = _fetch(settings, mapping, ledger, pool)
            outcome.changed |= outcome.fetched.parts_written > 0
        if "split" in settings.steps or "write" in settings.steps:
            _split(settings, mapping, ledger, outcome)
        if "write" in settings.steps:
            _write(settings, mapping, ledger, pool, outcome)
            if settings.upload and settings.part.whole:
                with progress("upload", "bytes", upload_bytes(settings.output)) as report:
                    outcome.uploaded = publish(settings.output, settings.upload, report)
                outcome.changed |= outcome.uploaded > 0
    return outcome


def dry_run(settings: BuildSettings) -> Path:
    """Build the first rows in a folder that is removed again; what they become is left as one page of HTML.

    Returns the page. Raises UserError as `build` does, but not for rows that are rejected.
    """
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
    source = open_source(settings.source)
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
        limits=settings.limits,
        allowed_hosts=settings.allowed_hosts,
        robots=settings.robots,
        probe=settings.probe,
        retry=settings.retry,
    )
    with progress("fetch", "rows", settings.limit) as report:
        counts = fetch(
            map(mapping.screen, islice(source.entries(), settings.limit)),
            ledger,
            fetching,
            pool,
            settings.workers,
            source,
            report,
            settings.part,
        )
    if counts.rows == 0:
        raise UserError(f"{settings.source} has column names but no rows; name the right file")
    if counts.parts_written:
        (ledger.downloads / "plan" / "plan.json").unlink(missing_ok=True)
    return counts


def _split(settings: BuildSettings, mapping: Mapping, ledger: Ledger, outcome: Outcome) -> None:
    """Take over the plan of these settings, or make it if this run is to."""
    summary = ledger.summary()
    if summary is None:
        raise UserError(f"{ledger.downloads} holds no finished ledger; run --only fetch first")
    check_columns(mapping, tuple(summary.columns), summary.source)
    if list(mapping.pictures) != summary.pictures:
        raise UserError(
            f"the pictures of column(s) {', '.join(summary.pictures)} were fetched, the preset wants "
            f"{', '.join(mapping.pictures)}; run --only fetch with this preset"
        )
    folder, wanted = ledger.downloads / "plan", _plan_settings(settings, mapping, summary)
    rejected_path = settings.output / "rejected.jsonl"
    try:
        plan = load_plan(folder, wanted)
        made = rejected_path.is_file()
    except PlanMissing:
        if "split" not in settings.steps:
            raise
        made = False
    if not made and "split" in settings.steps:
        with (
            progress("split", "rows", summary.rows) as report,
            RejectedRows(folder / ".rejected.part") as rejected,
        ):
            plan = make_plan(
                ledger,
                summary.parts,
                mapping,
                settings.size,
                settings.near_duplicates,
                _breaks(settings, mapping, summary),
                rejected,
                report,
            )
            (settings.output / "manifest.json").unlink(missing_ok=True)
            with whole_file(rejected_path) as stream:
                stream.writelines(rejected.lines())
        save_plan(folder, plan, wanted)
        outcome.changed = True
    outcome.plan = plan
    _check_rejected(plan, summary, settings)


def _breaks(settings: BuildSettings, mapping: Mapping, summary: Summary) -> list[int]:
    """Rows at which new shards start: where the catalogue ended at each whole build of this folder so far.

    So rows that are added to it touch no shard, not even one that is not full. Kept in a file, as the manifest that
    says so goes before the new one comes.
    """
    path = settings.output / "downloads" / "plan" / "breaks.json"
    record = _build_record(settings, mapping, summary)
    try:
        old = Manifest.load(settings.output).build
    except ManifestError:
        breaks = json.loads(path.read_bytes()) if path.is_file() else []
    else:
        same = all(old.get(name) == record[name] for name in record if name not in ("rows", "breaks"))
        breaks = [*old["breaks"], old["rows"]] if same else []
    breaks = [row for row in breaks if row < summary.rows]
    write_whole(path, json.dumps(breaks).encode())
    return breaks


def _plan_settings(settings: BuildSettings, mapping: Mapping, summary: Summary) -> str:
    about = [mapping.model_dump(), asdict(settings.size), settings.near_duplicates, asdict(summary)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _check_rejected(plan: Plan, summary: Summary, settings: BuildSettings) -> None:
    """Raise UserError if more downloads failed, or more of the other rows were rejected, than is allowed."""
    path = settings.output / "rejected.jsonl"
    failed = sum(summary.failed.values())
    if failed > settings.max_failed_downloads * summary.urls:
        raise UserError(
            f"{failed:,} of {summary.urls:,} URLs failed ({failed / summary.urls:.1%}, allowed "
            f"{settings.max_failed_downloads:.1%}): {counted(summary.failed)}; {remedies(summary.failed)}; "
            f"--max-failed-downloads allows more; {path} says why of each; what was done is kept"
        )
    others = plan.rows - summary.rows_failed
    rejected = sum(count for reason, count in plan.rejected.items() if reason not in SET_ASIDE) - summary.rows_failed
    reasons = counted(plan.rejected)
    if rejected > settings.max_rejected * others:
        raise UserError(
            f"{rejected:,} of {others:,} rows were rejected, failed downloads aside ({rejected / others:.1%}, allowed "
            f"{settings.max_rejected:.1%}): {reasons}; {path} says why of each; mend them, or allow more with "
            "--max-rejected; what was done is kept"
        )
    if not plan.splits:
        raise UserError(f"none of the {plan.rows:,} rows is left ({reasons}); {path} says why of each")


def _write(settings: BuildSettings, mapping: Mapping, ledger: Ledger, pool: Executor, outcome: Outcome) -> None:
    plan, summary = outcome.plan, ledger.summary()
    assert plan is not None
    assert summary is not None
    template = CHAT_TEMPLATES[mapping.chat_template]
    tokens = Tokens.of(settings.tokenizer, template) if settings.tokenizer else None
    with progress("write", "samples", sum(len(one.rows) for one in plan.splits.values())) as report:
        written = write_shards(settings.output, plan, mapping, pool, settings.workers, report, tokens, settings.part)
    outcome.shards_written = written.new_shards
    outcome.changed |= written.changed
    if not settings.part.whole:
        return
    shards = written.shards
    manifest = Manifest(
        counts={
            split: {
                "samples": sum(shard["samples"] for shard in shards[split]),
                "pictures": written.pictures[split],
                "bytes": sum(shard["bytes"] for shard in shards[split]),
            }
            for split in plan.splits
        },
        split_rule=mapping.split.model_dump(exclude_none=True),
        build=_build_record(settings, mapping, summary, plan.breaks),
        chat_template={"name": mapping.chat_template, "template": template},
        answer_template=mapping.answer_template,
        question=mapping.question,
        fields={name: rule.type for name, rule in mapping.fields.items()},
        shards=shards,
        rejected=plan.rejected,
        leaks_prevented=plan.leaks_prevented,
        tokenizer_hash=tokens.sha256 if tokens else None,
    )
    try:
        whole = Manifest.load(settings.output) == manifest
    except ManifestError:
        whole = False
    if not whole:
        manifest.save(settings.output)
    outcome.changed |= not whole
    outcome.manifest = manifest


def _build_record(
    settings: BuildSettings, mapping: Mapping, summary: Summary, breaks: Sequence[int] = ()
) -> dict[str, Any]:
    """What gives the same bytes from the same rows; no path of this machine, no number of workers."""
    return {
        "mapping": mapping.model_dump(exclude_none=True),
        "source": summary.source,
        "rows": summary.rows,
        "breaks": list(breaks),
        "shard_samples": settings.size.samples,
        "shard_bytes": settings.size.bytes,
        "near_duplicates": settings.near_duplicates,
        "rewriting": asdict(settings.rewriting),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run a build from the command line. Returns the exit code: 0, 2 for what the user can mend, 130 when stopped."""
    settings = parse(arguments)
    start = time.monotonic()
    try:
        if settings.preset is None and settings.source is not None:
            print(suggest_mapping(open_source(settings.source), settings.source), end="")
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
    report(outcome, time.monotonic() - start, settings.upload or settings.output, settings.part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
