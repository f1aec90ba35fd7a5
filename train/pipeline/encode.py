"""One sample → token ids, labels and crops; a pack's samples → a batch. Runs in workers, so without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.conversation import Conversation, ConversationError
from data.geometry import image_tokens
from data.images import PictureError, open_picture
from data.schema import Sample, SampleError, UserError
from data.shards import ShardError
from train.model.crops import canvas_crops
from train.pipeline.batch import IGNORED, BadSample, Batch, Encoded, assemble
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.read import ShardReader


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A pack to be read and encoded."""

    step: int
    number: int
    samples: tuple[int, ...]
    tokens: tuple[int, ...]
    """Planned length of each sample."""
    crop_chunks: int
    label_chunks: int


class Encoder:
    """Encodes samples by one tokenizer, template and picture geometry."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._conversation = Conversation(settings.tokenizer_file.read_text("utf-8"), settings.template)

    def encode(self, sample: Sample, pictures: Sequence[bytes]) -> Encoded:
        """Ids, labels and crops of one sample.

        Args:
            sample: its messages name the pictures by tags.
            pictures: encoded, in the order of the tags' numbers.
        Raises:
            PictureError: a picture cannot be decoded.
            ConversationError: messages and pictures do not fit together.
            SampleError: a picture is named more than once.
        """
        settings = self._settings
        crops, grids = [], []
        for data in pictures:
            cut, grid = canvas_crops(open_picture(data), settings.num_crops, settings.crop_size)
            crops.append(cut)
            grids.append(grid)
        tokens = [image_tokens(rows, columns, settings.tokens_per_side) for rows, columns in grids]
        ids, labels = self._conversation.encode(sample.messages, tokens)
        if np.count_nonzero(ids < 0) != sum(tokens):
            raise SampleError("its prompt names a picture more than once")
        labels[:1] = IGNORED
        size = settings.crop_size
        return Encoded(
            key=sample.key,
            input_ids=ids,
            labels=labels,
            crops=np.concatenate(crops) if crops else np.zeros((0, 3, size, size), np.uint8),
            grids=np.array(grids, np.int64).reshape(-1, 2),
        )


class PackMaker:
    """Reads and encodes whole packs: what a worker does all its life."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._corpus = Corpus.open(settings.sets)
        self._reader = ShardReader(self._corpus, settings.max_open)
        self._encoder = Encoder(settings)

    def make(self, job: Job) -> Batch:
        """Read and encode a pack. A damaged sample is left out and named in `bad`; nothing takes its place.

        Raises:
            LengthMismatch: a whole sample is not as long as planned.
            ReadError: a shard is gone.
        """
        encoded: list[Encoded] = []
        bad: list[BadSample] = []
        for number, tokens in zip(job.samples, job.tokens, strict=True):
            try:
                sample = self._encoder.encode(*self._reader.read(number))
            except ShardError as error:
                bad.append(self._bad(number, error.what))
                continue
            except (PictureError, ConversationError, SampleError) as error:
                bad.append(self._bad(number, str(error)))
                continue
            if len(sample.input_ids) != tokens:
                raise LengthMismatch(
                    f"{self._reader.shard_path(number)}: sample {sample.key!r} has {len(sample.input_ids)} tokens, "
                    f"planned were {tokens}; the index or the cached lengths are not of these shards: delete "
                    "lengths-*.npz in the cache folder, and build the shards again if that does not help"
                )
            encoded.append(sample)
        return assemble(
            encoded,
            crop_size=self._settings.crop_size,
            crop_chunks=job.crop_chunks,
            label_chunks=job.label_chunks,
            number=job.number,
            bad=bad,
        )

    def _bad(self, number: int, reason: str) -> BadSample:
        entry = self._corpus.entry(number)
        shard = self._corpus.shard_paths[entry.shard].name
        return BadSample(key=entry.key, shard=shard, byte=entry.offset, reason=reason)
