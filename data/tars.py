"""Tars as streams of samples: existing WebDataset shards, img2dataset's output, and shards that this program built."""

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, BinaryIO

from data.chat import inline_pictures
from data.entries import SourceError, Unreadable, Values
from data.manifest import FORMAT_VERSION
from data.places import join, open_binary
from data.rules import RENDERED
from data.tables import PACKED

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "text", "caption", "cls", "transcript")
MAX_MEMBER = 64 << 20
_MAX_NAME = 1 << 16
_PLAIN, _LONG_NAME, _PAX = (b"0", b"\0", b"7"), b"L", b"x"
_PAX_RECORD = re.compile(rb"(\d+) ([^=]+)=")


class TarError(Exception):
    """Bytes that are not those of a tar."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file in a tar."""

    name: str
    size: int
    data: bytes | None
    """None if it is larger than was asked for."""


def read_tar(stream: BinaryIO, max_bytes: int = MAX_MEMBER) -> Iterator[TarMember]:
    """The files of a tar in their order, one held at a time; what is no plain file is passed over.

    Unlike the standard library's reader it does not take damage in the middle for the end.
    Raises TarError: the bytes are no tar, or end too early.
    """
    place = 0
    name: str | None = None
    size: int | None = None
    while True:
        block = stream.read(BLOCKSIZE)
        if not block.strip(b"\0") and len(block) in (0, BLOCKSIZE):
            return
        try:
            info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (HeaderError, ValueError) as error:
            raise TarError(f"no header of a file at byte {place:,} ({error})") from error
        place += BLOCKSIZE
        held = size if size is not None and info.type in _PLAIN else info.size
        if held < 0:
            raise TarError(f"a file of {held} bytes at byte {place:,}")
        known = info.type in (_LONG_NAME, _PAX)
        if known and held > _MAX_NAME:
            raise TarError(f"a name of {held:,} bytes at byte {place:,}")
        padded = held + -held % BLOCKSIZE
        data = _take(stream, padded, held <= max_bytes and (known or info.type in _PLAIN), place)
        place += padded
        if info.type == _LONG_NAME:
            name = (data or b"")[:held].rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == _PAX:
            records = _pax((data or b"")[:held])
            name = records.get("path", name)
            size = int(records["size"]) if records.get("size", "").isdecimal() else size
        else:
            if info.type in _PLAIN:
                yield TarMember(name or info.name, held, None if data is None else data[:held])
            name = size = None


def _take(stream: BinaryIO, length: int, keep: bool, place: int) -> bytes | None:
    """Read on by `length` bytes, which are given back if they are to be kept."""
    pieces, left = [], length
    while left:
        piece = stream.read(min(left, 1 << 20))
        if not piece:
            raise TarError(f"ends after {length - left:,} of {length:,} bytes of the file at byte {place:,}")
        left -= len(piece)
        if keep:
            pieces.append(piece)
    return b"".join(pieces) if keep else None


def _pax(data: bytes) -> dict[str, str]:
    records, place = {}, 0
    while found := _PAX_RECORD.match(data, place):
        end = place + int(found[1])
        if end <= found.end():
            break
        records[found[2].decode(errors="replace")] = data[found.end() : end - 1].decode("utf-8", "surrogateescape")
        place = end
    return records


def read_tar_samples(where: str) -> Iterator[tuple[str, dict[str, bytes]] | Unreadable]:
    """The samples of a WebDataset tar: members side by side whose names are equal up to the first dot.

    Yields the key and the members by what follows the dot; an Unreadable for a sample with too large a member, for a
    name that is there twice, and for the rest of a tar that is damaged.
    """
    key, members, bad = None, dict[str, bytes](), ""

    def done() -> Iterator[tuple[str, dict[str, bytes]] | Unreadable]:
        if key is not None:
            yield Unreadable("bad-row", f"{where}: sample {key[:80]!r}: {bad}") if bad else (key, members)

    try:
        with open_binary(where, "infer" if where.endswith(PACKED) else None) as stream:
            for member in read_tar(stream):
                folder, slash, file = member.name.rpartition("/")
                stem, dot, kind = file.partition(".")
                if not dot or not stem or stem.startswith("__"):
                    continue
                if folder + slash + stem != key:
                    yield from done()
                    key, members, bad = folder + slash + stem, {}, ""
                if member.data is None:
                    bad = f"{kind!r} has {member.size:,} bytes, at most {MAX_MEMBER:,} are taken"
                elif kind.lower() in members:
                    bad = f"{kind!r} is there twice"
                else:
                    members[kind.lower()] = member.data
        yield from done()
    except (TarError, EOFError) as error:
        yield from done()
        yield Unreadable("damaged-tar", f"{where}: {error}; what stands behind it cannot be read")


def tar_rows(wheres: Iterable[str], beside: set[str]) -> Iterator[Values]:
    """The samples of WebDataset tars as rows: `__key__`, each member by what follows its dot, `images` with all
    pictures in their order, and the entries of the JSON member.

    Arguments: the tars; the Parquet files that stand beside some of them as img2dataset writes them: their columns are
    added, and a row of theirs that is in no tar (it was not downloaded) comes without a picture.
    """
    for where in wheres:
        table = _beside(where.rpartition(".tar")[0] + ".parquet", beside)
        for sample in read_tar_samples(where):
            if isinstance(sample, Unreadable):
                yield sample
                continue
            row, more = _row(*sample), table.pop(sample[0].rpartition("/")[2], {})
            yield more | row if isinstance(row, dict) else row
        for key, values in table.items():
            yield {**values, "__key__": key, "images": []}


def _beside(where: str, known: set[str]) -> dict[str, dict[str, Any]]:
    """Key → row of img2dataset's table of one tar (some thousand rows)."""
    from data.tables import open_table

    if where not in known:
        return {}
    columns, rows = open_table(where)
    if "key" not in columns:
        return {}
    return {str(row["key"]): row for row in rows() if isinstance(row, dict)}


def _row(key: str, members: dict[str, bytes]) -> Values:
    row: dict[str, Any] = {"__key__": key, "images": []}
    for kind, data in members.items():
        ending = kind.rpartition(".")[2]
        if ending in PICTURES:
            row[kind] = {"bytes": data, "path": None}
            row["images"].append(row[kind])
        elif ending in TEXTS:
            row[kind] = data.decode("utf-8-sig", "surrogateescape")
    if "json" in members:
        try:
            said = json.loads(members["json"])
        except (ValueError, RecursionError) as error:
            return Unreadable("bad-row", f"sample {key[:80]!r}: its JSON: {error}")
        for name, value in said.items() if isinstance(said, dict) else [("json", said)]:
            row[f"json.{name}" if name in row else name] = value
    return row


class _Hashed:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.sha256.update(data)
        return data


@dataclass(frozen=True, slots=True)
class BuiltShards:
    """A folder of shards that this program built."""

    folder: str
    shards: dict[str, list[dict[str, Any]]]
    pictures: list[str]
    """The columns that the pictures came from."""
    chat: str | None
    """The column that the conversations came from."""

    @classmethod
    def open(cls, folder: str) -> "BuiltShards | None":
        """The shards of a folder; None if its manifest is none of ours. Raises SourceError for another version."""
        with open_binary(join(folder, "manifest.json")) as stream:
            try:
                record = json.loads(stream.read(MAX_MEMBER))
                version, shards = record["format_version"], record["shards"]
            except (ValueError, KeyError, TypeError):
                return None
        if version != FORMAT_VERSION:
            raise SourceError(
                f"{folder}: shards of format version {version}, this program reads {FORMAT_VERSION}; build them again"
            )
        mapping = record["build"]["mapping"]
        return cls(folder, shards, list(mapping.get("pictures", [])), mapping.get("chat"))

    def rows(self) -> Iterator[Values]:
        """Their samples as the rows that they were made from, in the catalogue's order: the columns that were kept,
        the pictures as bytes in the columns they came from, and __key__, __messages__, __images__, __split__.

        Raises SourceError for a shard whose bytes are not those that were written.
        """
        splits = [self._split(split) for split in sorted(self.shards)]
        for _, row in heapq.merge(*splits, key=lambda one: one[0]):
            yield row

    def _split(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for shard in self.shards[split]:
            where = join(self.folder, split, shard["name"])
            with open_binary(where) as stream:
                hashed = _Hashed(stream)
                try:
                    yield from self._shard(hashed, split)  # type: ignore[arg-type]
                except (TarError, ValueError, KeyError, TypeError) as error:
                    raise SourceError(f"{where} is damaged ({error}); data.verify names each sample") from error
                while hashed.read(1 << 20):
                    pass
            if hashed.sha256.hexdigest() != shard["sha256"]:
                raise SourceError(f"{where}: its SHA-256 is not the manifest's; data.verify names each damaged sample")

    def _shard(self, stream: BinaryIO, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        members = read_tar(stream, 1 << 40)
        for head in members:
            sample = json.loads(head.data or b"")
            pictures = [next(members).data for _ in sample["images"]]
            yield sample["source"]["row"], self._row(head.name.partition(".")[0], split, sample, pictures)

    def _row(self, key: str, split: str, sample: dict[str, Any], pictures: list[bytes | None]) -> dict[str, Any]:
        row: dict[str, Any] = dict(sample["source"]["columns"])
        found = [{"bytes": data, "path": None} for data in pictures]
        place = 0
        for column in self.pictures:
            if column in RENDERED:
                continue
            known = row.get(column)
            names = known if isinstance(known, list) else [known]
            filled = [one | {"path": name} for one, name in zip(found[place:], names, strict=False)]
            row[column] = filled if isinstance(known, list) else next(iter(filled), None)
            place += len(filled)
        if self.chat and self.chat not in RENDERED:
            row[self.chat] = inline_pictures(sample["messages"], found, place)
        return row | dict(zip(RENDERED, (sample["messages"], found, split), strict=True)) | {"__key__": key}
