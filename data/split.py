"""Split: the ledger → which rows are kept, their keys, groups and splits, and which shard each stands in."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from data.ledger import Ledger, Record
from data.mapping import Mapping, ValueRejected
from data.plan import Ints, Plan, ShardPlan, ShardSize, SplitPlan, count_reasons
from data.schema import Rejected, SampleError

Hashes = NDArray[np.uint64]
_DIGEST_BYTES = 16
_TAR_BYTES = 2048  # that headers and padding of a sample may take


@dataclass(slots=True)
class _Kept:
    """Columns over the rows that make a sample; compact, as there may be millions."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    bytes: "array[int]" = field(default_factory=lambda: array("q"))
    products: "array[int]" = field(default_factory=lambda: array("Q"))
    same: "array[int]" = field(default_factory=lambda: array("Q"))
    """Hash of product, pictures and text: equal for a row that is there twice."""
    picture_rows: "array[int]" = field(default_factory=lambda: array("q"))
    """For each picture, its row's place in these columns."""
    pictures: "array[int]" = field(default_factory=lambda: array("Q"))
    digests: bytearray = field(default_factory=bytearray)
    keys: list[pa.Array] = field(default_factory=list)
    names: list[pa.Array] = field(default_factory=list)
    """Of the products."""
    splits: list[pa.Array] = field(default_factory=list)
    """As the split column says; empty where none decides."""


def make_plan(
    ledger: Ledger, parts: int, mapping: Mapping, size: ShardSize, report: Callable[[int], None]
) -> tuple[Plan, list[Rejected]]:
    """Decide over every row of a complete ledger; a pure function of the ledger and the settings.

    Arguments: the ledger and its number of parts; the mapping; where shards end; told how many more rows are done.
    Returns: the plan, and the rejected rows in the catalogue's order.
    """
    kept, rejected, rows = _Kept(), list[Rejected](), 0
    for part in range(parts):
        records = ledger.read(part)
        rejected += _map_records(records, mapping, kept)
        rows += len(records)
        report(len(records))
    numbers, keys, names = np.frombuffer(kept.rows, np.int64), _joined(kept.keys), _joined(kept.names)
    first = first_places(np.frombuffer(kept.same, np.uint64))
    unique = np.flatnonzero(first == np.arange(len(first)))
    rejected += _duplicates(numbers, keys, first)
    oldest = oldest_of_groups(
        np.frombuffer(kept.products, np.uint64),
        np.frombuffer(kept.picture_rows, np.int64),
        np.frombuffer(kept.pictures, np.uint64),
    )
    keys = unique_keys(keys.take(pa.array(unique)), numbers[unique])
    groups = names.take(pa.array(oldest[unique]))
    straddling = leaks = 0
    if mapping.split.fractions is not None:
        split_names = list(mapping.split.fractions)
        own = _dealt(names, mapping.split.fractions)
        codes = own[oldest[unique]]
        leaks = int(np.count_nonzero(codes != own[unique]))
    else:
        encoded = _joined(kept.splits).take(pa.array(unique)).dictionary_encode()
        split_names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
        straddling = _straddling(oldest[unique], codes)
    sizes = np.frombuffer(kept.bytes, np.int64)[unique]
    digests = np.frombuffer(bytes(kept.digests), np.uint8).reshape(-1, _DIGEST_BYTES)[unique]
    splits = {}
    for code in sorted(set(codes.tolist()), key=lambda code: split_names[code]):
        places = np.flatnonzero(codes == code)
        own_keys, own_groups = keys.take(pa.array(places)), groups.take(pa.array(places))
        shards = _cut(split_names[code], sizes[places], digests[places], own_keys, own_groups, size)
        splits[split_names[code]] = SplitPlan(
            rows=numbers[unique][places], keys=own_keys, groups=own_groups, shards=tuple(shards)
        )
    rejected.sort(key=lambda one: one.number)
    plan = Plan(
        rows=rows, splits=splits, rejected=count_reasons(rejected), leaks_prevented=leaks, straddling=straddling
    )
    return plan, rejected


def _map_records(records: list[Record], mapping: Mapping, kept: _Kept) -> Iterator[Rejected]:
    """Add the rows that make a sample to `kept`; yield the others."""
    keys, names, splits = [], [], []
    for record in records:
        key = mapping.key_of(record.row, record.values) if record.values else None
        if key is None or record.status != "ok":
            yield Rejected(number=record.row, key=key, stage=record.stage, reason=record.reason, detail=record.detail)
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
            yield Rejected(number=record.row, key=key, stage=stage, reason=reason, detail=detail)
            continue
        product = mapping.product_of(record.row, record.values)
        pictures = "".join(picture.sha256 for picture in record.pictures)
        for picture in record.pictures:
            kept.picture_rows.append(len(kept.rows))
            kept.pictures.append(int(picture.sha256[:16], 16))
        kept.rows.append(record.row)
        kept.bytes.append(sum(picture.bytes for picture in record.pictures) + len(said) + _TAR_BYTES)
        kept.products.append(_hash(product))
        kept.same.append(_hash(json.dumps([product, pictures, [message["content"] for message in sample.messages]])))
        kept.digests += xxhash.xxh3_128_digest(said + pictures.encode())
        keys.append(key)
        names.append(product)
    for column, values in ((kept.keys, keys), (kept.names, names), (kept.splits, splits)):
        column.append(pa.array(values, pa.large_string()))


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _joined(chunks: list[pa.Array]) -> pa.Array:
    return pa.concat_arrays(chunks or [pa.array([], pa.large_string())])


def first_places(hashes: Hashes) -> Ints:
    """For each place, the first place with the same hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    places: Ints = first[inverse].astype(np.int64)
    return places


def _duplicates(numbers: Ints, keys: pa.Array, first: Ints) -> Iterator[Rejected]:
    for place in np.flatnonzero(first != np.arange(len(first))).tolist():
        yield Rejected(
            number=int(numbers[place]),
            key=keys[place].as_py(),
            stage="split",
            reason="duplicate",
            detail=f"row {numbers[first[place]]} has the same product, pictures and text",
        )


def oldest_of_groups(products: Hashes, picture_rows: Ints, pictures: Hashes) -> Ints:
    """For each row the oldest of its group: rows belong together that share a product or a picture, over any number of
    others.

    Arguments: hash of each row's product [rows]; for each picture its row and its hash [pictures].
    Returns: int64 [rows], the smallest row of the group.
    """
    oldest = np.arange(len(products), dtype=np.int64)
    product_codes = np.unique(products, return_inverse=True)[1]
    picture_codes = np.unique(pictures, return_inverse=True)[1]
    while True:
        by_product = np.full(len(products), len(products), np.int64)
        np.minimum.at(by_product, product_codes, oldest)
        found = by_product[product_codes]
        by_picture = np.full(len(pictures), len(products), np.int64)
        np.minimum.at(by_picture, picture_codes, found[picture_rows])
        np.minimum.at(found, picture_rows, by_picture[picture_codes])
        found = found[found]
        if np.array_equal(found, oldest):
            return oldest
        oldest = found


def share_of(product: str) -> float:
    """A number in [0, 1) that a product always has, on any machine and in any catalogue."""
    return int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64


def _dealt(names: pa.Array, fractions: dict[str, float]) -> NDArray[np.int64]:
    """For each product name the number of its split."""
    encoded = names.dictionary_encode()
    shares = np.array([share_of(name) for name in encoded.dictionary.to_pylist()])
    bounds = np.cumsum(list(fractions.values()))[:-1]
    codes: NDArray[np.int64] = np.searchsorted(bounds, shares, side="right")
    return codes[encoded.indices.to_numpy(zero_copy_only=False)]


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
    split: str, sizes: Ints, digests: NDArray[np.uint8], keys: pa.Array, groups: pa.Array, size: ShardSize
) -> Iterator[ShardPlan]:
    """Cut a split's rows into shards."""
    first = held = number = 0
    for place, row_bytes in enumerate([*sizes.tolist(), None]):
        full = place - first == size.samples or (
            row_bytes is not None and place > first and held + row_bytes > size.bytes
        )
        if full or row_bytes is None:
            hasher = hashlib.sha256(digests[first:place].tobytes())
            said = [keys.slice(first, place - first).to_pylist(), groups.slice(first, place - first).to_pylist()]
            hasher.update(json.dumps(said).encode())
            yield ShardPlan(split=split, number=number, first=first, last=place, fingerprint=hasher.hexdigest())
            first, held, number = place, 0, number + 1
        held += row_bytes or 0
