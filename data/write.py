"""Write: the plan → tars and indexes; a shard whose inputs are unchanged is not written again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.index import SCHEMA, to_table, write_table
from data.ledger import Ledger, Record
from data.manifest import FORMAT_VERSION, file_sha256
from data.mapping import Mapping
from data.originals import PictureChanged, bytes_of, forget
from data.parts import ALL, Part
from data.plan import Ints, Plan, ShardPlan, SplitPlan
from data.schema import Picture
from data.shards import ShardWriter, shard_name
from data.tokens import Tokens
from data.volumes import Reader
from data.whole import remove_leftovers, whole_file
from data.workers import in_order, worker_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteJob:
    """One shard, for a worker."""

    out: str
    shard: ShardPlan
    rows: Ints
    keys: pa.Array
    mapping: dict[str, Any]
    tokenizer: Tokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What stands after the write step."""

    new_shards: int
    changed: bool
    """Whether any shard or index was written or removed."""
    shards: dict[str, list[dict[str, Any]]]
    """As in the manifest; empty if other machines write shards too."""
    pictures: dict[str, int]
    """Of each split."""


def write_shards(
    out: Path,
    plan: Plan,
    mapping: Mapping,
    workers: int,
    report: Callable[[int], None],
    tokenizer: Tokens | None = None,
    part: Part = ALL,
) -> Written:
    """Bring the shards and indexes under `out` up to date with the plan.

    Arguments: the output folder; the plan; the mapping; the number of processes; told how many more samples stand; the
    tokenizer that counts tokens into the index; the machine, if several divide the shards among them: it writes its
    shards alone, no index.
    Raises PictureChanged if a picture was changed since it was fetched.
    """
    todo = []
    numbers = count()
    for split, split_plan in plan.splits.items():
        if part.whole:
            remove_leftovers(out / split)
        for shard in split_plan.shards:
            if not part.has(next(numbers)):
                continue
            if _whole(out, shard, tokenizer):
                report(shard.last - shard.first)
            else:
                todo.append((shard, split_plan))
    stale = _stale(out, plan) if part.whole else []
    if todo or stale:
        # From here until it is written anew the folder does not pass for a whole one.
        (out / "manifest.json").unlink(missing_ok=True)
    for path in stale:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    # The largest first, so that the workers come to an end together; a few at a time, as a job names all its rows.
    todo.sort(key=lambda one: one[0].first - one[0].last)
    jobs = (_job(out, shard, split_plan, mapping, tokenizer) for shard, split_plan in todo)
    if todo:
        # One more, as each waits for the disk a tenth of the time; gone before the indexes come, which take memory.
        with worker_pool(workers and workers + 1) as pool:
            for written in in_order(pool, write_shard, jobs, 2 * workers + 1):
                report(written)
    changed = bool(todo or stale)
    shards: dict[str, list[dict[str, Any]]] = {}
    pictures: dict[str, int] = {}
    for split, split_plan in plan.splits.items() if part.whole else ():
        paths = [_note_path(out, shard) for shard in split_plan.shards]
        shards[split] = [_note(path) for path in paths]
        index = _index(paths, split_plan)
        pictures[split] = pc.sum(pc.list_value_length(index["image_sizes"])).as_py()
        changed |= _write_index(out / split / "index.arrow", index)
    return Written(new_shards=len(todo), changed=changed, shards=shards, pictures=pictures)


def _index(notes: list[Path], plan: SplitPlan) -> pa.Table:
    """The index of a split out of what its shards noted, a column at a time: whole it is there once, not twice.

    The groups are the plan's: rows that are added to a catalogue may join groups of older ones, whose shards stay.
    """
    columns = {}
    for name in SCHEMA.names:
        if name == "group":
            columns[name] = plan.groups
        else:
            columns[name] = pa.concat_arrays([chunk for path in notes for chunk in _column(path, name)])
    return pa.table(columns, schema=SCHEMA)


def _column(note: Path, name: str) -> list[pa.Array]:
    """A column of what a shard noted; read as one file, which a data set of one file takes ten times as long for."""
    with pq.ParquetFile(note) as file:
        chunks: list[pa.Array] = file.read(columns=[name])[name].cast(SCHEMA.field(name).type).chunks
        return chunks


def _write_index(path: Path, table: pa.Table) -> bool:
    """Bring an index up to date; says whether it was not."""
    beside = path.with_name(".index.arrow.part")
    write_table(beside, table)
    if path.is_file() and path.stat().st_size == beside.stat().st_size and file_sha256(path) == file_sha256(beside):
        beside.unlink()
        return False
    beside.replace(path)
    return True


def _note_path(out: Path, shard: ShardPlan) -> Path:
    """Where it is noted what a written shard was made from, with its part of the index."""
    return out / "downloads" / "shards" / shard.split / f"{shard_name(shard.number)}.parquet"


def _note(path: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(pq.read_schema(path).metadata[b"shard"])
    return note


def _fingerprint(shard: ShardPlan, tokenizer: Tokens | None) -> str:
    return f"{FORMAT_VERSION}:{shard.fingerprint}:{tokenizer.fingerprint if tokenizer else ''}"


def _whole(out: Path, shard: ShardPlan, tokenizer: Tokens | None) -> bool:
    """Whether a shard is there as it would be written now; its bytes are not read (data.verify does)."""
    try:
        metadata = pq.read_schema(_note_path(out, shard)).metadata or {}
        note = json.loads(metadata[b"shard"])
        size = (out / shard.split / note["name"]).stat().st_size
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return False
    return metadata[b"fingerprint"].decode() == _fingerprint(shard, tokenizer) and size == note["bytes"]


def _stale(out: Path, plan: Plan) -> list[Path]:
    """Shards and indexes of an earlier build that have no place in this one."""
    wanted = {
        out / split / name
        for split, one in plan.splits.items()
        for name in ("index.arrow", *(shard_name(shard.number) for shard in one.shards))
    }
    found = [*out.glob("*/shard-??????.tar"), *out.glob("*/index.arrow")]
    return sorted(path for path in found if path not in wanted)


def _job(out: Path, shard: ShardPlan, plan: SplitPlan, mapping: Mapping, tokenizer: Tokens | None) -> WriteJob:
    length = shard.last - shard.first
    return WriteJob(
        out=str(out),
        shard=shard,
        rows=plan.rows[shard.first : shard.last],
        # Copied out: a slice would be sent with all keys of the split.
        keys=pa.concat_arrays([plan.keys.slice(shard.first, length)]),
        mapping=mapping.model_dump(),
        tokenizer=tokenizer,
    )


def write_shard(job: WriteJob) -> int:
    """Write one shard and note what it was made from. Returns its number of samples. Raises PictureChanged."""
    out, shard = Path(job.out), job.shard
    mapping = Mapping(**job.mapping)
    ledger = Ledger(out / "downloads")
    entries = []
    path = out / shard.split / shard_name(shard.number)
    # Where a power cut loses the tar's name or the note's, the shard is written again; the index syncs all names.
    with ShardWriter(path, shard.number) as writer, Reader() as volumes:
        for record, key in zip(ledger.take(job.rows.tolist()), job.keys.to_pylist(), strict=True):
            pictures = _pictures(ledger, record, volumes)
            sample = mapping.sample(record.row, record.values, key, [picture.format for picture in pictures])
            entry = writer.add(sample, pictures, group="")
            entries.append(job.tokenizer.counted(entry, sample) if job.tokenizer else entry)
    note = {
        "name": path.name,
        "bytes": writer.bytes,
        "sha256": writer.sha256,
        "samples": len(entries),
    }
    table = to_table(entries).replace_schema_metadata(
        {"shard": json.dumps(note), "fingerprint": _fingerprint(shard, job.tokenizer)}
    )
    with whole_file(_note_path(out, shard), lasting=False) as stream:
        pq.write_table(table, stream)
    return len(entries)


def _pictures(ledger: Ledger, record: Record, volumes: Reader) -> list[Picture]:
    """A row's pictures, proved to be those that were checked."""
    try:
        return [
            Picture(
                data=bytes_of(ledger.downloads, found, volumes),
                format=found.format,
                width=found.width,
                height=found.height,
                sha256=found.sha256,
                phash=found.phash,
            )
            for found in record.pictures
        ]
    except PictureChanged:
        for found in record.pictures:
            forget(ledger.downloads, found)
        ledger.forget(record.row)
        raise
