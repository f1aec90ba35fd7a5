"""Split: the ledger → which rows are kept, their keys, groups and splits, and which shard each stands in."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from data.grouping import LEAK, Links, deal, first_places, oldest_of_groups
from data.ledger import Ledger
from data.light import trim
from data.mapped import DIGEST_BYTES, Kept, MapJob, Mapped, map_part
from data.mapping import Mapping
from data.near import near_pairs
from data.plan import Ints, Plan, ShardPlan, ShardSize, SplitPlan
from data.rejecting import RejectedRows
from data.schema import Rejected
from data.workers import in_order, worker_pool

_AT_ONCE = 1 << 16  # keys that are hashed at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dealt:
    """Where the rows of `Kept` stand."""

    stays: NDArray[np.bool_]
    """[rows], whether a row is in a shard at all."""
    oldest: Ints
    """[rows], the oldest row of each one's group."""
    codes: Ints
    """[rows], each one's place in `splits`."""
    splits: list[str]
    leaks_prevented: int = 0
    straddling: int = 0


def make_plan(
    ledger: Ledger,
    parts: int,
    mapping: Mapping,
    size: ShardSize,
    distance: float,
    breaks: Sequence[int],
    rejected: RejectedRows,
    report: Callable[[int], None],
    workers: int,
) -> Plan:
    """Decide over every row of a complete ledger; a pure function of the ledger and the settings.

    Arguments: the ledger and its number of parts; the mapping; where shards end; up to which distance pictures are
    near duplicates (data/near.py), 0 for none; rows at which new shards start, in every split; takes the rows that
    are in no shard; told how many more rows are done; the number of processes that render rows.
    """
    jobs = (MapJob(downloads=str(ledger.downloads), part=part, mapping=mapping.model_dump()) for part in range(parts))
    looks = ledger.downloads / "plan" / ".looks.part"
    try:
        with worker_pool(workers) as pool:  # gone before pictures are compared, which takes memory of its own
            kept, rows = _read(looks, in_order(pool, map_part, jobs, 2 * workers + 1), rejected, report)
        links = _links(kept, looks, distance)
    finally:
        looks.unlink(missing_ok=True)
    trim()
    _join(kept)
    dealt = _deal(kept, links, mapping, breaks, rejected)
    del links
    return Plan(
        rows=rows,
        splits=_splits(kept, dealt, breaks, size),
        rejected=rejected.reasons,
        leaks_prevented=dealt.leaks_prevented,
        straddling=dealt.straddling,
        breaks=tuple(breaks),
    )


def _read(
    looks: Path, parts: Iterator[Mapped], rejected: RejectedRows, report: Callable[[int], None]
) -> tuple[Kept, int]:
    """The ledger's rows that make a sample, and the number of all rows; writes the pictures' likenesses to a file."""
    looks.parent.mkdir(parents=True, exist_ok=True)
    kept, rows = Kept(), 0
    with looks.open("wb") as stream:
        for part in parts:
            kept.extend(part.kept)
            stream.write(part.looks)
            for one in part.rejected:
                rejected.add(one)
            rows += part.rows
            report(part.rows)
    return kept, rows


def _join(kept: Kept) -> None:
    """Put each text column's pieces together, one column at a time."""
    for column in (kept.keys, kept.names, kept.splits):
        whole = pa.concat_arrays(column or [pa.array([], pa.large_string())])
        column[:] = [whole]
        trim()


def _deal(kept: Kept, links: Links, mapping: Mapping, breaks: Sequence[int], rejected: RejectedRows) -> _Dealt:
    """Set duplicates and leaks aside, and give every row its split."""
    (keys,) = kept.keys
    numbers = np.frombuffer(kept.rows, np.int64)
    first = first_places(np.frombuffer(kept.same, np.uint64))
    stays = first == np.arange(len(first))
    for place in np.flatnonzero(~stays).tolist():
        detail = f"row {numbers[first[place]]} has the same product, pictures and text"
        rejected.add(_rejected(int(numbers[place]), keys[place].as_py(), "duplicate", detail))
    if mapping.split.fractions is None:
        oldest = oldest_of_groups(links)
        encoded = kept.splits[0].dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        straddling = _straddling(oldest[stays], codes[stays])
        return _Dealt(
            stays=stays, oldest=oldest, codes=codes, splits=encoded.dictionary.to_pylist(), straddling=straddling
        )
    splits, own = list(mapping.split.fractions), np.frombuffer(kept.own, np.int8).astype(np.int64)
    dealt = deal(links, own, np.searchsorted(np.array(breaks, np.int64), numbers, side="right"))
    for place, joined in dealt.leaks.items():
        if stays[place]:
            detail = ", ".join(f"that of row {numbers[one]} in {splits[dealt.codes[one]]}" for one in joined)
            detail = f"would join groups of different splits: {detail}"
            rejected.add(_rejected(int(numbers[place]), keys[place].as_py(), "leak", detail))
    stays &= dealt.codes != LEAK
    prevented = int(np.count_nonzero(dealt.codes[stays] != own[stays]))
    return _Dealt(stays=stays, oldest=dealt.oldest, codes=dealt.codes, splits=splits, leaks_prevented=prevented)


def _splits(kept: Kept, dealt: _Dealt, breaks: Sequence[int], size: ShardSize) -> dict[str, SplitPlan]:
    """The rows of each split and their shards; `kept` is empty afterwards, so that nothing is there twice."""
    stays = np.flatnonzero(dealt.stays)
    numbers = np.frombuffer(kept.rows, np.int64)[stays]
    keys = unique_keys(kept.keys.pop().take(pa.array(stays)), numbers)
    groups = kept.names.pop().take(pa.array(dealt.oldest[stays]))
    codes = dealt.codes[stays]
    sizes = np.frombuffer(kept.bytes, np.int64)[stays]
    digests = np.frombuffer(kept.digests, np.uint8).reshape(-1, DIGEST_BYTES)[stays]
    kept.clear()
    trim()
    splits = {}
    for code in sorted(np.unique(codes).tolist(), key=lambda code: dealt.splits[code]):
        places = np.flatnonzero(codes == code)
        own_keys = keys.take(pa.array(places))
        ages = np.searchsorted(np.array(breaks, np.int64), numbers[places], side="right")
        shards = _cut(dealt.splits[code], sizes[places], digests[places], own_keys, ages, size)
        splits[dealt.splits[code]] = SplitPlan(
            rows=numbers[places], keys=own_keys, groups=groups.take(pa.array(places)), shards=tuple(shards)
        )
    return splits


def _links(kept: Kept, looks: Path, distance: float) -> Links:
    pictures = np.frombuffer(kept.pictures, np.uint64)
    firsts = np.zeros(len(pictures), np.bool_)
    firsts[np.unique(pictures, return_index=True)[1]] = True
    return Links(
        products=np.frombuffer(kept.products, np.uint64),
        picture_rows=np.frombuffer(kept.picture_rows, np.int64),
        pictures=pictures,
        near=near_pairs(looks, firsts, distance),
    )


def _rejected(number: int, key: str, reason: str, detail: str) -> Rejected:
    return Rejected(number=number, key=key, stage="split", reason=reason, detail=detail)


def _straddling(oldest: Ints, codes: NDArray[np.integer]) -> int:
    """Rows whose group has rows in several splits."""
    pairs = np.unique(np.stack([oldest, codes.astype(np.int64)]), axis=1)
    groups, splits = np.unique(pairs[0], return_counts=True)
    return int(np.count_nonzero(np.isin(oldest, groups[splits > 1])))


def unique_keys(keys: pa.Array, numbers: Ints) -> pa.Array:
    """Keys of which each is there once: the first row keeps its key, later ones get their number behind it."""
    seen: dict[str, int] = {}
    renamed, places = [], []
    # Only keys of one hash can be the same, which are few: a table of all keys would take more than the keys.
    for place in _of_one_hash(keys).tolist():
        key = keys[place].as_py()
        if seen.setdefault(key, place) != place:
            places.append(place)
            renamed.append(f"{key}~r{numbers[place]}")
    if not places:
        return keys
    repeated = np.zeros(len(keys), np.bool_)
    repeated[places] = True
    return pc.replace_with_mask(keys, pa.array(repeated), pa.array(renamed, keys.type))


def _of_one_hash(keys: pa.Array) -> Ints:
    """The places, rising, of keys that have their hash in common with another one."""
    hashes = np.empty(len(keys), np.uint64)
    for first in range(0, len(keys), _AT_ONCE):
        some = keys.slice(first, _AT_ONCE).cast(pa.large_binary()).to_pylist()
        hashes[first : first + len(some)] = [xxhash.xxh3_64_intdigest(key) for key in some]
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    places: Ints = np.unique(order[np.concatenate([same, same + 1])])
    return places


def _cut(
    split: str, sizes: Ints, digests: NDArray[np.uint8], keys: pa.Array, ages: Ints, size: ShardSize
) -> Iterator[ShardPlan]:
    """Cut a split's rows into shards; a shard holds rows of one age alone."""
    first = held = number = 0
    for place, row_bytes in enumerate([*sizes.tolist(), None]):
        full = place - first == size.samples or (
            row_bytes is not None and place > first and (held + row_bytes > size.bytes or ages[place] != ages[first])
        )
        if full or row_bytes is None:
            hasher = hashlib.sha256(digests[first:place].tobytes())
            hasher.update(json.dumps(keys.slice(first, place - first).to_pylist()).encode())
            yield ShardPlan(split=split, number=number, first=first, last=place, fingerprint=hasher.hexdigest())
            first, held, number = place, 0, number + 1
        held += row_bytes or 0
