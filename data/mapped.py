"""The ledger's rows that make a sample, as compact columns: made part by part, by any process."""

import hashlib
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from data.ledger import Ledger, Record
from data.looks import LOOK_BYTES
from data.mapping import Mapping
from data.rules import ValueRejected
from data.schema import Rejected, Sample, SampleError

DIGEST_BYTES = 16
_TAR_BYTES = 2048  # that headers and padding of a sample may take
_NO_LOOK = bytes(LOOK_BYTES)  # without shapes, hence near to nothing


@dataclass(slots=True)
class Kept:
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

    def extend(self, other: "Kept") -> None:
        """Put another part's rows behind these."""
        self.picture_rows.extend(len(self.rows) + place for place in other.picture_rows)
        for column in fields(self):
            if column.name != "picture_rows":
                getattr(self, column.name).extend(getattr(other, column.name))

    def clear(self) -> None:
        """Let all columns go."""
        empty = Kept()
        for column in fields(self):
            setattr(self, column.name, getattr(empty, column.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class MapJob:
    """A part of the ledger, for a worker."""

    downloads: str
    part: int
    mapping: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a part's rows come to."""

    rows: int
    kept: Kept
    looks: bytes
    """Of the pictures of `kept`, LOOK_BYTES each."""
    rejected: list[Rejected]


def map_part(job: MapJob) -> Mapped:
    """Render the rows of a part. Raises LedgerError."""
    mapping, records = Mapping(**job.mapping), Ledger(Path(job.downloads)).read(job.part)
    bounds = list(accumulate((mapping.split.fractions or {}).values()))[:-1]
    mapped = _Part()
    for record in records:
        key = mapping.key_of(record.row, record.values) if record.values else None
        if key is None or record.status != "ok":
            mapped.reject(record.row, key, record.stage, record.reason, record.detail)
            continue
        stage = "map"
        try:
            sample = mapping.sample(record.row, record.values, key, [picture.format for picture in record.pictures])
            said = sample.to_json()
            stage = "split"
            split = mapping.split_of(record.values) if mapping.split.column else ""
        except ValueRejected as error:
            mapped.reject(record.row, key, stage, error.reason, error.detail)
        except SampleError as error:
            mapped.reject(record.row, key, stage, "bad-value", str(error))
        else:
            product = mapping.product_of(record.values, key)
            mapped.keep(record, sample, said, product, split, bisect_right(bounds, share_of(product)))
    return mapped.done(len(records))


class _Part:
    """A part's rows as they are rendered."""

    def __init__(self) -> None:
        self._kept = Kept()
        self._looks = bytearray()
        self._rejected: list[Rejected] = []
        self._keys: list[str] = []
        self._names: list[str] = []
        self._splits: list[str] = []

    def reject(self, row: int, key: str | None, stage: str, reason: str, detail: str) -> None:
        self._rejected.append(Rejected(number=row, key=key, stage=stage, reason=reason, detail=detail))

    def keep(self, record: Record, sample: Sample, said: bytes, product: str, split: str, own: int) -> None:
        kept = self._kept
        pictures = "".join(picture.sha256 for picture in record.pictures)
        for picture in record.pictures:
            kept.picture_rows.append(len(kept.rows))
            kept.pictures.append(int(picture.sha256[:16], 16))
            self._looks += picture.look or _NO_LOOK
        kept.rows.append(record.row)
        kept.bytes.append(sum(picture.bytes for picture in record.pictures) + len(said) + _TAR_BYTES)
        kept.products.append(_hash(product))
        words = [message["content"] for message in sample.messages]
        kept.same.append(_hash(repr((product, pictures, words))))
        kept.own.append(own)
        kept.digests += xxhash.xxh3_128_digest(said + pictures.encode())
        self._keys.append(sample.key)
        self._names.append(product)
        self._splits.append(split)

    def done(self, rows: int) -> Mapped:
        kept = self._kept
        for column, values in ((kept.keys, self._keys), (kept.names, self._names), (kept.splits, self._splits)):
            column.append(pa.array(values, pa.large_string()))
        return Mapped(rows=rows, kept=kept, looks=bytes(self._looks), rejected=self._rejected)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def share_of(product: str) -> float:
    """A number in [0, 1) that a product always has, on any machine and in any catalogue."""
    return int.from_bytes(hashlib.sha256(product.encode()).digest()[:8], "big") / 2**64
