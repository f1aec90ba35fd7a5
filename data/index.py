"""index.arrow: where each sample of a split lies and how large it is, memory-mapped."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.schema import UserError
from data.whole import whole_file

UNKNOWN = -1
_LOOKED_THROUGH = 100_000  # samples; of a larger index only the frame is checked as it is opened
_FORMAT = {b"format": b"phi3v-index-1"}
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("members", pa.large_list(pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))),
        ("xxh3", pa.uint64()),
        ("image_sizes", pa.large_list(pa.list_(pa.int32(), 2))),
        ("text_bytes", pa.int32()),
        ("text_tokens", pa.int32()),
        ("label_tokens", pa.int32()),
        ("group", pa.large_string()),
    ],
    metadata=_FORMAT,
)


class IndexFileError(UserError):
    """An index file that is not there or is not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file within the tar."""

    name: str
    """What follows the key and its dot: "json", "jpg", "0.jpg"."""
    offset: int
    """Byte in the tar at which its content starts."""
    size: int
    """Bytes of content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One sample of a split."""

    key: str
    shard: int
    """Number of the shard in the split, from 0."""
    offset: int
    """Byte in the tar at which the sample's first header starts."""
    length: int
    """Bytes from there to the end of its last member, headers and padding included."""
    members: tuple[Member, ...]
    """The JSON first, then the pictures in their order."""
    xxh3: int
    """XXH3-64 of the bytes [offset, offset + length)."""
    image_sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels, upright."""
    text_bytes: int
    """UTF-8 bytes of all messages' content."""
    text_tokens: int = UNKNOWN
    label_tokens: int = UNKNOWN
    group: str = ""
    """Rows of one product or with one picture share it."""


def to_table(entries: Iterable[IndexEntry]) -> pa.Table:
    """Entries as an Arrow table of SCHEMA."""
    listed = list(entries)
    columns: dict[str, list[Any]] = {name: [getattr(entry, name) for entry in listed] for name in SCHEMA.names}
    columns["members"] = [
        [{"name": member.name, "offset": member.offset, "size": member.size} for member in entry.members]
        for entry in listed
    ]
    return pa.table(columns, schema=SCHEMA)


def write_table(path: Path, table: pa.Table) -> None:
    """Write an index of one record batch, whole or not at all: one batch is what makes its columns plain arrays."""
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=SCHEMA)]
    with whole_file(path) as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def write_index(path: Path, entries: Iterable[IndexEntry]) -> None:
    """Write index.arrow, whole or not at all."""
    write_table(Path(path), to_table(entries))


class Index:
    """A split's samples by number. Columns are views of the mapped file; nothing is read until it is looked at."""

    def __init__(self, path: Path, batch: pa.RecordBatch) -> None:
        self.path = path
        self._batch = batch
        self._key = batch.column("key")
        self._group = batch.column("group")
        members = batch.column("members")
        self._member_starts = members.offsets.to_numpy()
        self._member_names = members.values.field("name")
        self._member_offset, self._member_size = (
            members.values.field(name).to_numpy(zero_copy_only=True) for name in ("offset", "size")
        )

    @classmethod
    def open(cls, path: Path) -> "Index":
        """Map an index file. Raises IndexFileError if it is not there, damaged or of another format."""
        path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except FileNotFoundError as error:
            raise IndexFileError(f"{path}: there is no such index; build the shards again") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IndexFileError(f"{path} is not an index ({error}); build the shards again") from error
        if (reader.schema.metadata or {}).get(b"format") != _FORMAT[b"format"] or not reader.schema.equals(SCHEMA):
            raise IndexFileError(f"{path} is an index of another format; build the shards again with this version")
        if reader.num_record_batches != 1:
            raise IndexFileError(
                f"{path} has {reader.num_record_batches} record batches, not 1; build the shards again"
            )
        try:
            batch = reader.get_batch(0)
            batch.validate(full=batch.num_rows <= _LOOKED_THROUGH)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise IndexFileError(f"{path} is damaged ({error}); build the shards again") from error
        nested = [batch.column("members").values, batch.column("image_sizes").values]
        if any(column.null_count for column in (*batch.columns, *nested, *nested[0].flatten(), nested[1].values)):
            raise IndexFileError(f"{path} is damaged (values are missing); build the shards again")
        return cls(path, batch)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.path,)

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def _numbers(self, name: str) -> NDArray[Any]:
        numbers: NDArray[Any] = self._batch.column(name).to_numpy(zero_copy_only=True)
        return numbers

    @cached_property
    def shard(self) -> NDArray[np.int32]:
        """int32 [samples], number of the shard."""
        return self._numbers("shard")

    @cached_property
    def offset(self) -> NDArray[np.int64]:
        """int64 [samples], byte in the tar."""
        return self._numbers("offset")

    @cached_property
    def length(self) -> NDArray[np.int64]:
        """int64 [samples], bytes."""
        return self._numbers("length")

    @cached_property
    def xxh3(self) -> NDArray[np.uint64]:
        """uint64 [samples]."""
        return self._numbers("xxh3")

    @cached_property
    def text_bytes(self) -> NDArray[np.int32]:
        """int32 [samples]."""
        return self._numbers("text_bytes")

    @cached_property
    def text_tokens(self) -> NDArray[np.int32]:
        """int32 [samples], -1 where not counted."""
        return self._numbers("text_tokens")

    @cached_property
    def label_tokens(self) -> NDArray[np.int32]:
        """int32 [samples], -1 where not counted."""
        return self._numbers("label_tokens")

    def known_tokens(self, samples: int) -> NDArray[np.int32] | None:
        """int32 [2, samples], text and label tokens of the first samples; None where any was not counted."""
        known = np.stack([self.text_tokens[:samples], self.label_tokens[:samples]])
        return None if known.min(initial=0) < 0 else known

    @cached_property
    def picture_offsets(self) -> NDArray[np.int64]:
        """int64 [samples + 1]: sample i has the pictures picture_offsets[i] … picture_offsets[i + 1]."""
        offsets: NDArray[np.int64] = self._batch.column("image_sizes").offsets.to_numpy()
        return offsets

    @cached_property
    def picture_counts(self) -> NDArray[np.int64]:
        """int64 [samples]."""
        return np.diff(self.picture_offsets)

    @cached_property
    def picture_sizes(self) -> NDArray[np.int32]:
        """int32 [pictures, 2] (width, height) in pixels."""
        sizes: NDArray[np.int32] = self._batch.column("image_sizes").values.values.to_numpy()
        return sizes.reshape(-1, 2)

    @cached_property
    def keys(self) -> list[str]:
        """All keys; made when first asked for."""
        keys: list[str] = self._key.to_pylist()
        return keys

    @cached_property
    def groups(self) -> int:
        """How many groups of rows there are."""
        count: int = pc.count_distinct(self._group).as_py()
        return count

    def find(self, key: str) -> int | None:
        """The number of the sample with this key, or None."""
        place: int = pc.index(self._key, pa.scalar(key, pa.large_string())).as_py()
        return None if place < 0 else place

    def key(self, number: int) -> str:
        """The key of one sample."""
        key: str = self._key[number].as_py()
        return key

    def group(self, number: int) -> str:
        """The group of one sample."""
        group: str = self._group[number].as_py()
        return group

    def entry(self, number: int) -> IndexEntry:
        """All about one sample. Raises IndexError for a number that is not 0 … len - 1."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: sample {number} of {len(self)}")
        members = tuple(
            Member(
                name=self._member_names[place].as_py(),
                offset=int(self._member_offset[place]),
                size=int(self._member_size[place]),
            )
            for place in range(self._member_starts[number], self._member_starts[number + 1])
        )
        sizes = self.picture_sizes[self.picture_offsets[number] : self.picture_offsets[number + 1]].tolist()
        return IndexEntry(
            key=self._key[number].as_py(),
            shard=int(self.shard[number]),
            offset=int(self.offset[number]),
            length=int(self.length[number]),
            members=members,
            xxh3=int(self.xxh3[number]),
            image_sizes=tuple((width, height) for width, height in sizes),
            text_bytes=int(self.text_bytes[number]),
            text_tokens=int(self.text_tokens[number]),
            label_tokens=int(self.label_tokens[number]),
            group=self._group[number].as_py(),
        )
