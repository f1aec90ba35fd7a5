"""One sample → token ids, labels and crops; a pack's samples → a batch. Runs in workers, so without torch."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.conversation import Conversation, ConversationError
from data.geometry import canvas, image_tokens
from data.images import PictureError, open_picture
from data.index import IndexEntry
from data.schema import Sample, SampleError, UserError
from data.shards import ShardError
from train.pipeline.batch import IGNORED, BadSample, Batch, Encoded, assemble
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.events import Event
from train.pipeline.passing import Bytes, Layout
from train.pipeline.pixels import fill_crops
from train.pipeline.read import ShardReader
from train.pipeline.storage import Storage


class LengthMismatch(UserError):
    """A sample is not as long as planned: index, cached lengths and shards do not belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """What an encoder and a reader are made from; small enough to send to a worker."""

    sets: tuple[ShardSet, ...]
    tokenizer_file: Path
    """tokenizer.json"""
    template: str
    num_crops: int
    crop_size: int
    tokens_per_side: int
    max_open: int
    storage: Storage = field(default_factory=Storage)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        sets = [asdict(one) | {"folder": str(one.folder)} for one in self.sets]
        return asdict(self) | {"sets": sets, "tokenizer_file": str(self.tokenizer_file)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "EncoderSettings":
        """The settings that `to_json` wrote."""
        sets = tuple(
            ShardSet(**(one | {"folder": Path(one["folder"]), "shard_names": tuple(one["shard_names"])}))
            for one in values["sets"]
        )
        objects = {"tokenizer_file": Path(values["tokenizer_file"]), "storage": Storage(**values["storage"])}
        return cls(**(values | {"sets": sets} | objects))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A pack to be read and encoded."""

    step: int
    number: int
    samples: tuple[int, ...]
    tokens: tuple[int, ...]
    """Planned length of each sample."""
    num_crops: tuple[int, ...]
    """Most crops of each picture, sample by sample."""
    crop_chunks: int
    label_chunks: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Job":
        """The job that `to_json` wrote."""
        return cls(**(values | {name: tuple(values[name]) for name in ("samples", "tokens", "num_crops")}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A pack, and what making it took."""

    batch: Batch
    seconds: dict[str, float]
    """By what it went into, see SECONDS."""
    events: tuple[Event, ...] = ()
    """What happened meanwhile that a person should know of."""


READING, REMOTE, ENCODING = "reading", "remote", "decoding"
SECONDS = (READING, REMOTE, ENCODING)


class Encoder:
    """Encodes samples by one tokenizer, template and picture geometry."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._conversation = Conversation(settings.tokenizer_file.read_text("utf-8"), settings.template)

    def grids_of(self, entry: IndexEntry, num_crops: int) -> list[tuple[int, int]]:
        """Rows and columns of crops of each picture of a sample, at most `num_crops` of each, by the sizes in the
        index; without global views."""
        places = (canvas(*size, num_crops, self._settings.crop_size) for size in entry.image_sizes)
        return [(place.rows, place.columns) for place in places]

    def words(self, sample: Sample, grids: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and labels of one sample, int64 [T] each.

        Args:
            sample: its messages name the pictures by tags.
            grids: rows and columns of crops of each picture, in the order of the tags' numbers.
        Raises:
            ConversationError: messages and pictures do not fit together.
            SampleError: a picture is named more than once.
        """
        tokens = [image_tokens(rows, columns, self._settings.tokens_per_side) for rows, columns in grids]
        ids, labels = self._conversation.encode(sample.messages, tokens)
        if np.count_nonzero(ids < 0) != sum(tokens):
            raise SampleError("its prompt names a picture more than once")
        labels[:1] = IGNORED
        return ids, labels

    def pixels(
        self, pictures: Sequence[bytes], grids: Sequence[tuple[int, int]], num_crops: int, out: NDArray[np.uint8]
    ) -> None:
        """Put the crops of a sample's pictures into `out`.

        Args:
            pictures: encoded.
            grids: planned rows and columns of crops of each.
            num_crops: most crops of each picture.
            out: uint8 [K, c, c, 4], room for all of them.
        Raises:
            PictureError: a picture cannot be decoded.
            LengthMismatch: the pictures have other crops than planned.
        """
        size, at = self._settings.crop_size, 0
        if len(pictures) != len(grids):
            raise LengthMismatch(f"{len(pictures)} pictures, planned were {len(grids)}")
        for data, (rows, columns) in zip(pictures, grids, strict=True):
            picture = open_picture(data)
            place = canvas(picture.width, picture.height, num_crops, size)
            if (place.rows, place.columns) != (rows, columns):
                raise LengthMismatch(
                    f"a picture of {place.rows} × {place.columns} crops, planned were {rows} × {columns}"
                )
            fill_crops(picture, num_crops, size, out[at : at + rows * columns])
            at += rows * columns


def own_memory(size: int) -> Bytes:
    """Memory for one pack of this process's own."""
    return np.empty(size, np.uint8)


class PackMaker:
    """Reads and encodes whole packs: what a worker does all its life."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._corpus = Corpus.open(settings.sets)
        self._reader = ShardReader(self._corpus, settings.max_open, settings.storage)
        self._encoder = Encoder(settings)

    def make(self, job: Job, memory: Callable[[int], Bytes] = own_memory) -> Made:
        """Read and encode a pack. A damaged sample is left out and named in `bad`; nothing takes its place.

        Args:
            memory: gives at least so many bytes, in which all arrays of the pack come to lie.
        Raises:
            LengthMismatch: a whole sample is not as long as planned.
            ReadError: the shards cannot be read at all.
        """
        entries = [self._corpus.entry(number) for number in job.samples]
        grids = [self._encoder.grids_of(*one) for one in zip(entries, job.num_crops, strict=True)]
        crop_counts = [sum(rows * columns for rows, columns in one) for one in grids]
        size = self._settings.crop_size
        crops_shape = (sum(crop_counts), 3, size, size)
        tokens_shape, ends_shape = (max(sum(job.tokens), 1),), (max(len(entries), 1) + 1,)
        grids_shape = (sum(map(len, grids)), 2)
        room = Layout(
            memory(
                Layout.size((crops_shape, np.uint8), (grids_shape, np.int64), (ends_shape, np.int32))
                + 3 * Layout.size((tokens_shape, np.int64))
            )
        )
        crops = room.array(crops_shape, np.uint8)
        begun, read_s, remote_before = time.perf_counter(), 0.0, self._reader.remote_s
        self._reader.expect(entries)
        bad: dict[int, BadSample] = {}
        whole: list[tuple[int, str, NDArray[np.int64], NDArray[np.int64], Sequence[bytes]]] = []
        # All texts before all pictures: the megabytes of a picture push everything else out of the processor's caches,
        # and what reading and encoding need is had back once a pack and not once a sample.
        for place, (entry, tokens) in enumerate(zip(entries, job.tokens, strict=True)):
            with self._left_out(bad, place, entry):
                start = time.perf_counter()
                try:
                    sample, pictures = self._reader.read(entry)
                finally:
                    read_s += time.perf_counter() - start
                ids, labels = self._encoder.words(sample, grids[place])
                if len(ids) != tokens:
                    raise LengthMismatch(f"{len(ids)} tokens, planned were {tokens}")
                whole.append((place, sample.key, ids, labels, pictures))
        encoded: list[Encoded] = []
        used = 0
        for place, key, ids, labels, files in whole:
            own = crops[used : used + crop_counts[place]]
            with self._left_out(bad, place, entries[place]):
                self._encoder.pixels(files, grids[place], job.num_crops[place], own)
                rows = np.array(grids[place], np.int64).reshape(-1, 2)
                encoded.append(Encoded(key=key, input_ids=ids, labels=labels, crops=own, grids=rows))
                used += len(own)
        batch = assemble(
            encoded,
            crops=crops[:used],
            crop_chunks=job.crop_chunks,
            label_chunks=job.label_chunks,
            number=job.number,
            bad=[bad[place] for place in sorted(bad)],
            array=room.array,
        )
        remote_s = self._reader.remote_s - remote_before
        encode_s = time.perf_counter() - begun - read_s
        seconds = {READING: max(read_s - remote_s, 0.0), REMOTE: remote_s, ENCODING: encode_s}
        return Made(batch=batch, seconds=seconds, events=tuple(self._reader.take_events()))

    @contextmanager
    def _left_out(self, bad: dict[int, BadSample], place: int, entry: IndexEntry) -> Iterator[None]:
        """Note a sample that is found damaged within the block."""
        try:
            yield
        except LengthMismatch as error:
            raise LengthMismatch(self._mismatch(entry, str(error))) from error
        except ShardError as error:
            bad[place] = self._bad(entry, error.what)
        except (PictureError, ConversationError, SampleError) as error:
            bad[place] = self._bad(entry, str(error))

    def prefetch(self, shards: Sequence[int]) -> None:
        """Have shards that are elsewhere fetched in the background, in this order."""
        self._reader.prefetch(shards)

    def close(self) -> None:
        """Close what is open."""
        self._reader.close()

    def _bad(self, entry: IndexEntry, reason: str) -> BadSample:
        path = self._corpus.shard_paths[entry.shard]
        shard = path.name if len(self._corpus.sets) == 1 else str(path)
        return BadSample(key=entry.key, shard=shard, byte=entry.offset, reason=reason)

    def _mismatch(self, entry: IndexEntry, found: str) -> str:
        return (
            f"{self._corpus.shard_paths[entry.shard]}: sample {entry.key!r} has {found}; the index or the cached "
            "lengths are not of these shards: delete lengths-*.npy and text-*.npy in the cache folder, and build the "
            "shards again if that does not help"
        )
