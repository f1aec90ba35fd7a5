"""Split: the ledger → which rows are kept, their keys, groups and splits, and which shard each stands in."""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from data.grouping import LEAK, Links, deal, first_places, oldest_of_groups
from data.ledger import Ledger, Record
from data.looks import LOOK_BYTES
from data.mapping import Mapping
from data.near import near_pairs
from data.plan import Ints, Plan, ShardPlan, ShardSize, SplitPlan
from data.rejecting import RejectedRows
from data.rules import ValueRejected
from data.schema import Rejected, SampleError

_DIGEST_BYTES = 16
_TAR_BYTES = 2048  # that headers and padding of a sample may take
_TO_JSON = json.JSONEncoder()
_NO_LOOK = bytes(LOOK_BYTES)  # without shapes, hence near to nothing


@dataclass(slots=True)
class _Kept:
    """Columns over the rows that make a sample; compact, as there may be millions."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    bytes: "array[int]" = field(default_factory=lambda: array("q"))
    products: "array[int]" = field(default_factory=lambda: array("Q"))
    same: "array[int]" = field(default_factory=lambda: array("Q"))
    """Hash of product, pictures and text: equal for a row that is there twice."""
    own: "array[int]" = field(default_factory=lambda: array("b"))
    """The split of the row's own product; 0 where a column decides."""
    picture_rows: "array[int]" = field(default_factory=lambda: array("q"))
    """For each picture, its row's place in these columns."""
    pictures: "array[int]" = field(default_factory=lambda: array("Q"))
    digests: bytearray = field(default_factory=bytearray)
    keys: list[pa.Array] = field(default_factory=list)
    names: list[pa.Array] = field(default_factory=list)
    """Of the products."""
    splits: list[pa.Array] = field(default_factory=list)
    """As the split column says; empty where none decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dealt:
    """Where the rows of `_Kept` stand."""

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
) -> Plan:
    """Decide over every row of a complete ledger; a pure function of the ledger and the settings.

    Arguments: the ledger and its number of parts; the mapping; where shards end; up to which distance pictures are
    near duplicates (data/near.py), 0 for none; rows at which new shards start, in every split; takes the rows that
    are in no shard; told how many more rows are done.
    """
    kept, links, rows = _read(ledger, parts, mapping, distance, rejected, report)
    keys, names = _joined(kept.keys), _joined(kept.names)
    dealt = _deal(kept, keys, links, mapping, rejected)
    stays = np.flatnonzero(dealt.stays)
    numbers = np.frombuffer(kept.rows, np.int64)[stays]
    keys = unique_keys(keys.take(pa.array(stays)), numbers)
    groups = names.take(pa.array(dealt.oldest[stays]))
    codes = dealt.codes[stays]
    sizes = np.frombuffer(kept.bytes, np.int64)[stays]
    digests = np.frombuffer(kept.digests, np.uint8).reshape(-1, _DIGEST_BYTES)[stays]
    splits = {}
    for code in sorted(np.unique(codes).tolist(), key=lambda code: dealt.splits[code]):
        places = np.flatnonzero(codes == code)
        own_keys = keys.take(pa.array(places))
        ages = np.searchsorted(np.array(breaks, np.int64), numbers[places], side="right")
        shards = _cut(dealt.splits[code], sizes[places], digests[places], own_keys, ages, size)
        splits[dealt.splits[code]] = SplitPlan(
            rows=numbers[places], keys=own_keys, groups=groups.take(pa.array(places)), shards=tuple(shards)
        )
    return Plan(
        rows=rows,
        splits=splits,
        rejected=rejected.reasons,
        leaks_prevented=dealt.leaks_prevented,
        straddling=dealt.straddling,
        breaks=tuple(breaks),
    )


def _read(
    ledger: Ledger,
    parts: int,
    mapping: Mapping,
    distance: float,
    rejected: RejectedRows,
    report: Callable[[int], None],
) -> tuple[_Kept, Links, int]:
    """The ledger's rows that make a sample, what they have in common, and the number of all rows."""
    looks = ledger.downloads / "plan" / ".looks.part"
    looks.parent.mkdir(parents=True, exist_ok=True)
    kept, rows = _Kept(), 0
    try:
        with looks.open("wb") as stream:
            for part in range(parts):
                records = ledger.read(part)
                _map_records(records, mapping, kept, stream, rejected)
                rows += len(records)
                report(len(records))
        return kept, _links(kept, looks, distance), rows
    finally:
        looks.unlink(missing_ok=True)


def _deal(kept: _Kept, keys: pa.Array, links: Links, mapping: Mapping, rejected: RejectedRows) -> _Dealt:
    """Set duplicates and leaks aside, and give every row its split."""
    numbers = np.frombuffer(kept.rows, np.int64)
    first = first_places(np.frombuffer(kept.same, np.uint64))
    stays = first == np.arange(len(first))
    for place in np.flatnonzero(~stays).tolist():
        detail = f"row {numbers[first[place]]} has the same product, pictures and text"
        rejected.add(_rejected(int(numbers[place]), keys[place].as_py(), "duplicate", detail))
    if mapping.split.fractions is None:
        oldest = oldest_of_groups(links)
        encoded = _joined(kept.splits).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        straddling = _straddling(oldest[stays], codes[stays])
        return _Dealt(
            stays=stays, oldest=oldest, codes=codes, splits=encoded.dictionary.to_pylist(), straddling=straddling
        )
    splits, own = list(mapping.split.fractions), np.frombuffer(kept.own, np.int8).astype(np.int64)
    dealt = deal(links, own)
    for place, joined in dealt.leaks.items():
        if stays[place]:
            detail = ", ".join(f"that of row {numbers[one]} in {splits[dealt.codes[one]]}" for one in joined)
            detail = f"would join groups of different splits: {detail}"
            rejected.add(_rejected(int(numbers[place]), keys[place].as_py(), "leak", detail))
    stays &= dealt.codes != LEAK
    prevented = int(np.count_nonzero(dealt.codes[stays] != own[stays]))
    return _Dealt(stays=stays, oldest=dealt.oldest, codes=dealt.codes, splits=splits, leaks_prevented=prevented)


def _map_records(records: list[Record], mapping: Mapping, kept: _Kept, looks: BinaryIO, rejected: RejectedRows) -> None:
    """Add the rows that make a sample to `kept` and their pictures' likenesses to `looks`; the others are rejected."""
    keys, names, splits = [], [], []
    bounds = list(accumulate((mapping.split.fractions or {}).values()))[:-1]
    for record in records:
        key = mapping.key_of(record.row, record.values) if record.values else None
        if key is None or record.status != "ok":
            rejected.add(
                Rejected(number=record.row, key=key, stage=record.stage, reason=record.reason, detail=record.detail)
            )
            continue
        stage = "map"
        try:
            sample = mapping.sample(record.row, record.values, key, [picture.format for picture in record.pictures])
            said = sample.to_json()
            stage = "split"
            splits.append(mapping.split_of(record.values) if mapping.split.column else "")
        except (ValueRejected, SampleError) as error:
            reason, detail = (
                (error.reason, error.detail) if isinstance(error, ValueRejected) else ("bad-value", str(error))
            )
            rejected.add(Rejected(number=record.row, key=key, stage=stage, reason=reason, detail=detail))
            continue
        product = mapping.product_of(record.values, key)
        pictures = "".join(picture.sha256 for picture in record.pictures)
        for picture in record.pictures:
            kept.picture_rows.append(len(kept.rows))
            kept.pictures.append(int(picture.sha256[:16], 16))
            looks.write(picture.look or _NO_LOOK)
        kept.rows.append(record.row)
        kept.bytes.append(sum(picture.bytes for picture in record.pictures) + len(said) + _TAR_BYTES)
        kept.products.append(_hash(product))
        kept.same.append(
            _hash(_TO_JSON.encode([product, pictures, [message["content"] for message in sample.messages]]))
        )
        kept.own.append(bisect_right(bounds, share_of(product)))
        kept.digests += xxhash.xxh3_128_digest(said + pictures.encode())
        keys.append(key)
        names.append(product)
    for column, values in ((kept.keys, keys), (kept.names, names), (kept.splits, splits)):
        column.append(pa.array(values, pa.large_string()))


def _links(kept: _Kept, looks: Path, distance: float) -> Links:
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


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _joined(chunks: list[pa.Array]) -> pa.Array:
    """The chunks as one array; they are let go."""
    joined = pa.concat_arrays(chunks or [pa.array([], pa.large_string())])
    chunks.clear()
    return joined


def share_of(product: str) -> float:
    """A number in [0, 1) that a product always has, on any machine and in any catalogue."""
    return int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64


def _straddling(oldest: Ints, codes: NDArray[np.integer]) -> int:
    """Rows whose group has rows in several splits."""
    pairs = np.unique(np.stack([oldest, codes.astype(np.int64)]), axis=1)
    groups, splits = np.unique(pairs[0], return_counts=True)
    return int(np.count_nonzero(np.isin(oldest, groups[splits > 1])))


def unique_keys(keys: pa.Array, numbers: Ints) -> pa.Array:
    """Keys of which each is there once: the first row keeps its key, later ones get their number behind it."""
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = first_places(codes.astype(np.uint64))
    repeated = first != np.arange(len(first))
    if not repeated.any():
        return keys
    places = np.flatnonzero(repeated)
    renamed = [f"{keys[place].as_py()}~r{numbers[place]}" for place in places.tolist()]
    return pc.replace_with_mask(keys, pa.array(repeated), pa.array(renamed, keys.type))


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
