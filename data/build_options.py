"""What a person asks of a build: the settings and the command line that gives them."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from data import kinds
from data.asking import Asking, DownloadLimits
from data.parts import ALL, Part
from data.places import is_remote
from data.plan import ShardSize
from data.taking import DISTANCE, KEEP, Rewriting

STEPS = ("fetch", "split", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """One build, as a person asks for it."""

    preset: str | None
    """A preset's name or a mapping's file; None to be shown one to start from."""
    source: str | None
    """Only the fetch step needs it."""
    output: Path
    """Folder for the shards; with `upload`, the work folder."""
    upload: str | None = None
    """URL to which finished shards are sent."""
    dry_run: bool = False
    """Only look at the first samples."""
    steps: tuple[str, ...] = STEPS
    encoding: str | None = None
    """Of the text of tables; found out if None."""
    image_root: str | None = None
    """Folder or URL where relative picture paths start; the catalogue's folder if None."""
    limit: int | None = None
    """Rows to take from the start."""
    part: Part = ALL
    """Which of several machines this is; each does its share of fetch or of write."""
    join: bool = False
    """Put together what the machines did, and do what is left."""
    workers: int = 2
    """Processes; 0 does all in this one."""
    rewriting: Rewriting = KEEP
    """When pictures that stand upright are encoded anew."""
    asking: Asking = field(default_factory=Asking)
    max_failed_downloads: float = 0.3
    """Share of the URLs that may fail."""
    max_rejected: float = 0.05
    """Share of the other rows that may be rejected."""
    near_duplicates: float = DISTANCE
    """Up to which distance (data/near.py) two pictures are of one group; 0 for the very same bytes alone."""
    tokenizer: Path | None = None
    """Model folder whose tokenizer counts tokens into the index."""
    size: ShardSize = field(default_factory=ShardSize)


def parse(arguments: list[str] | None = None) -> BuildSettings:
    """The command line as settings; argparse ends the program for one that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m data.build", description="Build training shards from a catalogue.")
    _add_places(parser)
    _add_rows(parser)
    _add_shares(parser)
    _add_downloads(parser)
    _add_shards(parser)
    values = parser.parse_args(arguments)
    steps = _steps(parser, values)
    return BuildSettings(
        preset=values.preset,
        source=values.source,
        output=values.work or Path(values.output or "."),
        upload=values.output if values.work else None,
        dry_run=values.dry_run,
        steps=steps,
        part=values.part,
        join=values.join,
        encoding=values.encoding,
        image_root=values.image_root,
        limit=values.limit,
        workers=values.workers,
        asking=_asking(values),
        max_failed_downloads=values.max_failed_downloads,
        max_rejected=values.max_rejected,
        rewriting=Rewriting(max_side=values.max_side, quality=values.quality),
        near_duplicates=values.near_duplicates,
        tokenizer=values.tokenizer,
        size=ShardSize(samples=values.shard_samples, bytes=values.shard_mb << 20),
    )


def _steps(parser: argparse.ArgumentParser, values: argparse.Namespace) -> tuple[str, ...]:
    """Which steps a command line asks for; ends the program for options that do not go together."""
    if values.output is None and (values.preset or not values.source):
        parser.error("--output names the folder for the shards")
    if is_remote(values.output or "") != (values.work is not None):
        parser.error("--work names a folder here for ledger and downloads: it goes with an --output that is a URL")
    if not values.part.whole:
        if values.only == "split":
            parser.error("--part: the split step is one machine's; use --join --only split")
        return (values.only or "fetch",)
    if values.join and values.only == "fetch":
        parser.error("--join: there is nothing to put together within fetch; --join --only split comes after it")
    steps: tuple[str, ...] = (values.only,) if values.only else STEPS
    return tuple(step for step in steps if step != "fetch") if values.join else steps


def _asking(values: argparse.Namespace) -> Asking:
    return Asking(
        limits=DownloadLimits(
            max_bytes=values.max_picture_mb << 20,
            timeout_s=values.timeout,
            deadline_s=values.deadline,
            attempts=values.attempts,
            backoff_s=values.backoff,
            connections=values.connections,
            connections_per_host=values.connections_per_host,
            per_host_rate=values.per_host_rate,
        ),
        allowed_hosts=frozenset(values.allow_host),
        robots=not values.no_robots,
        probe=not values.no_probe,
        retry=values.retry,
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        help="burberry, clothing, or a mapping of your own: FILE.yaml; without it the columns are shown and a mapping "
        "to edit",
    )
    parser.add_argument(
        "--source",
        help="catalogue: a .csv, .tsv, .jsonl, .json, .parquet or .tar file, a pattern or folder of these or of "
        "pictures, here or at a URL such as s3://…, shards to render anew, or hf:NAME[:CONFIG][@REVISION]",
    )
    parser.add_argument(
        "--encoding",
        type=kinds.encoding,
        metavar="NAME",
        help="of a .csv, .tsv or .jsonl file that is neither UTF-8 nor UTF-16, such as cp1252",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for the shards, or a URL such as s3://…")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder here for ledger, downloads and shards where --output is a URL"
    )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="folder or URL where relative picture paths start (default: the catalogue's folder)",
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="write only OUTPUT/dry-run.html: the first samples with their pictures"
    )
    parser.add_argument("--limit", type=kinds.positive, metavar="N", help="take only the first N rows")
    parser.add_argument(
        "--max-rejected",
        type=kinds.share,
        default=0.05,
        metavar="SHARE",
        help="share of the rows that may be rejected, failed downloads aside (default: 0.05)",
    )
    parser.add_argument(
        "--near-duplicates",
        type=kinds.share,
        default=DISTANCE,
        metavar="DISTANCE",
        help=f"how far pictures of one group may differ; 0: only the same bytes (default: {DISTANCE})",
    )


def _add_shares(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=STEPS, help="run one step alone")
    among = parser.add_mutually_exclusive_group()
    among.add_argument(
        "--part",
        type=kinds.share_of_machines,
        default=ALL,
        metavar="I/N",
        help="do the I-th of N shares of a step (fetch, or write with --only write); the machines share --output",
    )
    among.add_argument(
        "--join", action="store_true", help="put the shares of all machines together, and do what is left to do"
    )
    parser.add_argument(
        "--workers",
        type=kinds.not_negative,
        default=2,
        metavar="N",
        help="processes, and one more for shards, as each waits for the disk; 0 for none (default: 2)",
    )


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-samples",
        type=kinds.positive,
        default=ShardSize().samples,
        metavar="N",
        help="samples a shard (default: 1000)",
    )
    parser.add_argument(
        "--shard-mb",
        type=kinds.positive,
        default=ShardSize().bytes >> 20,
        metavar="MB",
        help="MiB a shard at most (default: 256)",
    )
    parser.add_argument(
        "--max-side", type=kinds.positive, metavar="PIXELS", help="make larger pictures smaller (default: bytes stay)"
    )
    parser.add_argument(
        "--quality",
        type=kinds.quality,
        metavar="1-100",
        help="encode every JPEG anew (default: bytes stay as they are)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="model folder whose tokenizer.json counts tokens into the index"
    )


def _add_downloads(parser: argparse.ArgumentParser) -> None:
    usual = DownloadLimits()
    group = parser.add_argument_group("downloads")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch from this host also if its address is not public; repeatable",
    )
    group.add_argument("--no-robots", action="store_true", help="neither robots.txt nor X-Robots-Tag is respected")
    group.add_argument("--no-probe", action="store_true", help="go on even if most of the first 200 URLs fail")
    group.add_argument(
        "--retry",
        type=kinds.classes,
        default=frozenset(),
        metavar="CLASSES",
        help="of the URLs that failed earlier, try these again: dns,429,timeout (classes as in rejected.jsonl)",
    )
    group.add_argument(
        "--max-failed-downloads",
        type=kinds.share,
        default=0.3,
        metavar="SHARE",
        help="share of the URLs that may fail (default: 0.3)",
    )
    numbers = (
        ("--connections", kinds.positive, usual.connections, "N", "requests at once"),
        ("--connections-per-host", kinds.positive, usual.connections_per_host, "N", "requests at once to one host"),
        ("--per-host-rate", kinds.seconds, usual.per_host_rate, "N", "requests a second to one host; 0: no bound"),
        ("--timeout", kinds.seconds, usual.timeout_s, "S", "seconds for one attempt, by the clock"),
        ("--deadline", kinds.seconds, usual.deadline_s, "S", "seconds for all attempts of one URL, by the clock"),
        ("--attempts", kinds.positive, usual.attempts, "N", "attempts for one URL, where another may help"),
        (
            "--backoff",
            kinds.seconds,
            usual.backoff_s,
            "S",
            "seconds before the second attempt, doubled before each further",
        ),
        ("--max-picture-mb", kinds.positive, usual.max_bytes >> 20, "MB", "MiB of one picture at most"),
    )
    for name, kind, default, unit, meaning in numbers:
        group.add_argument(name, type=kind, default=default, metavar=unit, help=f"{meaning} (default: {default:g})")
