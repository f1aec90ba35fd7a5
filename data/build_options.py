"""What a person asks of a build: the settings and the command line that gives them."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from data.plan import ShardSize

STEPS = ("fetch", "split", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """One build, as a person asks for it."""

    preset: str
    """A preset's name or a mapping's file."""
    source: str | None
    """Only the fetch step needs it."""
    output: Path
    steps: tuple[str, ...] = STEPS
    image_root: str | None = None
    """Folder or URL where relative picture paths start; the catalogue's folder if None."""
    limit: int | None = None
    """Rows to take from the start."""
    workers: int = 2
    """Processes; 0 does all in this one."""
    allowed_hosts: frozenset[str] = frozenset()
    max_rejected: float = 0.2
    """Share of the rows that may be rejected."""
    size: ShardSize = field(default_factory=ShardSize)


def parse(arguments: list[str] | None = None) -> BuildSettings:
    """The command line as settings; argparse ends the program for one that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m data.build", description="Build training shards from a catalogue.")
    parser.add_argument("--preset", required=True, help="burberry, clothing, or a mapping of your own: FILE.yaml")
    parser.add_argument(
        "--source",
        help="catalogue: a .csv, .tsv, .jsonl, .json, .parquet or .tar file, a pattern or folder of these or of "
        "pictures, here or at a URL such as s3://…, shards to render anew, or hf:NAME[:CONFIG][@REVISION]",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for the shards")
    parser.add_argument("--only", choices=STEPS, help="run one step alone")
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="folder or URL where relative picture paths start (default: the catalogue's folder)",
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="take only the first N rows")
    parser.add_argument(
        "--workers", type=_not_negative, default=2, metavar="N", help="processes; 0 for none (default: 2)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch from this host also if its address is not public; repeatable",
    )
    parser.add_argument(
        "--max-rejected",
        type=_share,
        default=0.2,
        metavar="SHARE",
        help="share of the rows that may be rejected (default: 0.2)",
    )
    parser.add_argument(
        "--shard-samples",
        type=_positive,
        default=ShardSize().samples,
        metavar="N",
        help="samples a shard (default: 1000)",
    )
    parser.add_argument(
        "--shard-mb",
        type=_positive,
        default=ShardSize().bytes >> 20,
        metavar="MB",
        help="MiB a shard at most (default: 256)",
    )
    values = parser.parse_args(arguments)
    return BuildSettings(
        preset=values.preset,
        source=values.source,
        output=values.output,
        steps=(values.only,) if values.only else STEPS,
        image_root=values.image_root,
        limit=values.limit,
        workers=values.workers,
        allowed_hosts=frozenset(values.allow_host),
        max_rejected=values.max_rejected,
        size=ShardSize(samples=values.shard_samples, bytes=values.shard_mb << 20),
    )


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _not_negative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)
