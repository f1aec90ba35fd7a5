"""Samples into tars and back: plain WebDataset shards whose bytes are a pure function of the samples."""

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import xxhash

from data.index import Index, IndexEntry, Member
from data.manifest import Manifest
from data.schema import Picture, Sample, SampleError, UserError
from data.whole import send_out, whole_file

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
SENT_BYTES = 4 << 20  # after which they are sent to the disk, which is then done soon after the last of them


class ShardError(UserError):
    """Bytes of a shard that are not those that were written."""

    def __init__(self, path: Path, key: str, byte: int, what: str) -> None:
        super().__init__(path, key, byte, what)
        self.path = path
        self.key = key
        self.byte = byte
        self.what = what

    def __str__(self) -> str:
        folder = self.path.parent.parent
        return (
            f"{self.path}: sample {self.key!r} at byte {self.byte:,}: {self.what}; "
            f"run 'python -m data.verify {folder}' to list all damaged samples, then build again what it names"
        )


def shard_name(number: int) -> str:
    """The file name of a split's shard."""
    return f"shard-{number:06d}.tar"


class ShardWriter:
    """Writes one tar; as a context manager it leaves the whole shard or nothing.

    A power cut may take it away again until its folder is synced (data/whole.py), once for many shards.
    """

    def __init__(self, path: Path, number: int) -> None:
        """Takes the tar's path and its number in the split."""
        self.path = path
        self.number = number
        self.bytes = self._sent = 0
        self._sha256 = hashlib.sha256()
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        self._stream = self._stack.enter_context(whole_file(self.path, cached=False, lasting=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            self._write(END)
        return self._stack.__exit__(kind, error, trace)

    @property
    def sha256(self) -> str:
        """Of all that is written, hex; after the block, of the whole file."""
        return self._sha256.hexdigest()

    def add(self, sample: Sample, pictures: Sequence[Picture], group: str) -> IndexEntry:
        """Append a sample: its JSON, then its pictures in the order of `sample.images`. Returns its index entry."""
        contents = [("json", sample.to_json()), *zip(sample.images, (one.data for one in pictures), strict=True)]
        start = place = self.bytes
        pieces, members = list[bytes](), list[Member]()
        for name, content in contents:
            size = len(content)
            members.append(Member(name=name, offset=place + BLOCK, size=size))
            pieces += (_header(f"{sample.key}.{name}", size), content, bytes(-size % BLOCK))
            place += BLOCK + size + -size % BLOCK
        whole = b"".join(pieces)
        self._write(whole)
        return IndexEntry(
            key=sample.key,
            shard=self.number,
            offset=start,
            length=self.bytes - start,
            members=tuple(members),
            xxh3=xxhash.xxh3_64_intdigest(whole),
            image_sizes=tuple([(one.width, one.height) for one in pictures]),
            text_bytes=sum([len(message["content"].encode()) for message in sample.messages]),
            group=group,
        )

    def _write(self, piece: bytes) -> None:
        self._stream.write(piece)
        self._sha256.update(piece)
        self.bytes += len(piece)
        if self.bytes - self._sent >= SENT_BYTES:
            send_out(self._stream)
            self._sent = self.bytes


def _header(name: str, size: int) -> bytes:
    """A ustar header in which only name and size vary: no clock, no user, no machine.

    What `tarfile` makes, ten times quicker: its one header of an empty name has both put in.
    """
    given, length = name.encode("ascii"), b"%011o" % size
    checksum = _HEADER_SUM + sum(given) + sum(length)
    return b"".join(
        (given.ljust(100, b"\0"), _HEADER[100:124], length, _HEADER[135:148], b"%06o\0" % checksum, _HEADER[155:])
    )


def _empty_header() -> bytes:
    info = tarfile.TarInfo("")
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


_HEADER = _empty_header()
# As the format adds up: the checksum's own eight bytes as spaces; here without the size's digits.
_HEADER_SUM = sum(_HEADER[:124]) + sum(_HEADER[135:148]) + 8 * 32 + sum(_HEADER[156:])


def parse_sample(buffer: bytes, entry: IndexEntry, path: Path) -> tuple[Sample, list[bytes]]:
    """A sample from the bytes [entry.offset, entry.offset + entry.length) of its shard.

    Returns: the sample and its pictures' encoded bytes.
    Raises ShardError if the bytes are not those that were written.
    """
    if len(buffer) != entry.length:
        raise ShardError(
            path, entry.key, entry.offset + len(buffer), f"ends after {len(buffer):,} of {entry.length:,} bytes"
        )
    if xxhash.xxh3_64_intdigest(buffer) != entry.xxh3:
        raise ShardError(path, entry.key, entry.offset, "its bytes do not have the hash that the index gives")
    contents = []
    for member in entry.members:
        start = member.offset - entry.offset
        content = buffer[start : start + member.size]
        if start < 0 or len(content) != member.size:
            raise ShardError(path, entry.key, member.offset, f"the index places its {member.name} outside the sample")
        contents.append(content)
    if not contents:
        raise ShardError(path, entry.key, entry.offset, "the index gives it no members")
    try:
        return Sample.from_json(contents[0], entry.key), contents[1:]
    except SampleError as error:
        raise ShardError(path, entry.key, entry.members[0].offset, str(error)) from error


def read_sample(tar_path: Path, entry: IndexEntry) -> tuple[Sample, list[bytes]]:
    """Read one sample by its place. Raises ShardError (see `parse_sample`), also for a shard that cannot be read."""
    try:
        with Path(tar_path).open("rb") as tar:
            there = min(max(0, os.fstat(tar.fileno()).st_size - entry.offset), entry.length)
            if entry.offset < 0 or entry.length < 0:
                raise ShardError(Path(tar_path), entry.key, entry.offset, "the index places it before the file's start")
            buffer = os.pread(tar.fileno(), there, entry.offset)
    except OSError as error:
        raise ShardError(Path(tar_path), entry.key, entry.offset, f"cannot be read ({error.strerror})") from error
    return parse_sample(buffer, entry, Path(tar_path))


def iter_samples(folder: Path, split: str) -> Iterator[tuple[Sample, list[bytes]]]:
    """All samples of a split in the order of its index, with their pictures' bytes.

    Raises ManifestError, IndexFileError, ShardError.
    """
    manifest = Manifest.load(folder)
    manifest.check_shards(folder, split)
    index = Index.open(Path(folder) / split / "index.arrow")
    names = [shard["name"] for shard in manifest.shards[split]]
    for number in range(len(index)):
        entry = index.entry(number)
        yield read_sample(Path(folder) / split / names[entry.shard], entry)
