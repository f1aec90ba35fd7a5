"""How long each sample is, before any picture is read: text counted once, image tokens from the pictures' sizes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.conversation import Conversation, ConversationError
from data.geometry import grids, image_tokens
from data.index import Index
from data.schema import Sample, SampleError, UserError
from data.shards import ShardError
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.order import Counts, Ints
from train.pipeline.read import ShardReader
from train.pipeline.sharing import Ranks, kept_table, shared_table

# Samples whose pictures are looked at together: temporary arrays stay small however many there are.
STRETCH = 500_000
UNCOUNTED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How pictures are cut, and what is done to a sample that no pack takes."""

    num_crops: int
    crop_size: int
    tokens_per_side: int
    fit_into: int | None = None
    """Tokens that a sample's pictures are cut into fewer crops to keep within, where that can be; None: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of every sample of a corpus."""

    tokens: Counts
    """int32 [samples], the whole sequence."""
    labels: Counts
    """int32 [samples], supervised tokens."""
    crops: Counts
    """int32 [samples], crops through the vision tower, global views included."""
    num_crops: Counts
    """int32 [samples], most crops of each picture."""


def picture_lengths(index: Index, text: Counts, start: int, stop: int, geometry: Geometry) -> Counts:
    """Add to the counted text what the pictures take.

    Args:
        index: of the split, for the pictures' sizes.
        text: int32 [stop − start], tokens beside the image tokens.
        start, stop: the samples looked at.
    Returns:
        int32 [3, stop − start]: tokens, crops, num_crops.
    Raises:
        UserError: a picture is too thin for this geometry.
    """
    offsets = index.picture_offsets[start : stop + 1].astype(np.int64)
    sizes = index.picture_sizes[offsets[0] : offsets[-1]]
    table = _at(index, sizes, offsets - offsets[0], geometry.num_crops, geometry)
    tokens, crops, limits = text + table[0], table[1], np.full(stop - start, geometry.num_crops, np.int32)
    for fewer in range(geometry.num_crops - 1, 0, -1):
        long = np.flatnonzero((tokens > geometry.fit_into) & (crops > 0)) if geometry.fit_into else ()
        if not len(long):
            break
        counts = np.diff(offsets)[long]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        chosen = np.repeat(offsets[long] - offsets[0] - bounds[:-1], counts) + np.arange(bounds[-1])
        table = _at(index, sizes[chosen], bounds, fewer, geometry)
        tokens[long], crops[long], limits[long] = text[long] + table[0], table[1], fewer
    return np.stack([tokens, crops, limits]).astype(np.int32)


def _at(index: Index, sizes: Counts, offsets: Ints, num_crops: int, geometry: Geometry) -> Ints:
    """Image tokens and crops of samples whose pictures are sizes[offsets[i] : offsets[i + 1]]; int64 [2, samples]."""
    try:
        shapes = grids(sizes, num_crops, geometry.crop_size)
    except ValueError as error:
        raise UserError(f"{index.path}: {error}") from error
    rows, columns = shapes[:, 0], shapes[:, 1]
    cells = rows * columns
    # A picture of one crop is its own global view.
    values = np.stack([image_tokens(rows, columns, geometry.tokens_per_side), cells + (cells > 1)]).astype(np.int64)
    totals = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum(values, axis=1)], axis=1)
    return totals[:, offsets[1:]] - totals[:, offsets[:-1]]


def sample_lengths(
    indexes: Sequence[Index],
    text_of: Callable[[int], Counts],
    samples: Sequence[int],
    geometry: Geometry,
    *,
    about: str,
    cache: Path | None,
    ranks: Ranks,
) -> Lengths:
    """Lengths of all samples of a corpus, from the cache or computed now.

    Args:
        indexes, samples: of each set.
        text_of: counted text of a set by its number, int32 [2, samples]; asked for only where no lengths are kept.
        about: names the shards, tokenizer and template: what the cached numbers depend on beside the geometry.
        cache: folder; None keeps none.
        ranks: who shares the work.
    """
    starts = np.concatenate([[0], np.cumsum(samples)])
    shape = (4, int(starts[-1]))
    file = _file(cache, "lengths", [about, asdict(geometry)])
    table = kept_table(file, shape, ranks)
    if table is None:
        texts = [text_of(number) for number in range(len(indexes))]
        whole = all(_whole(text) for text in texts)
        work = _measure(indexes, [text if whole else _as_one_token(text) for text in texts], starts, geometry)
        table = shared_table(file if whole else None, shape, work, ranks, say="lengths of samples")
    return Lengths(tokens=table[0], labels=table[1], crops=table[2], num_crops=table[3])


def _measure(
    indexes: Sequence[Index], texts: Sequence[Counts], starts: Ints, geometry: Geometry
) -> Callable[[int, int], Counts]:
    """What computes the lengths of a stretch of samples."""

    def work(start: int, stop: int) -> Counts:
        parts = [np.zeros((4, 0), np.int32)]
        for index, text, first, last in zip(indexes, texts, starts[:-1], starts[1:], strict=True):
            for begin in range(max(start, first), min(stop, last), STRETCH):
                end = min(begin + STRETCH, stop, last)
                counted = np.asarray(text[:, begin - first : end - first])
                rest = picture_lengths(index, counted[0], begin - first, end - first, geometry)
                parts.append(np.stack([rest[0], counted[1], rest[1], rest[2]]))
        return np.concatenate(parts, axis=1)

    return work


def _as_one_token(text: Counts) -> Counts:
    """A sample that could not be counted takes one token: the reader will find it damaged too and leave it out, and its
    pack is that much emptier."""
    mended = np.array(text)
    mended[:, text[0] == UNCOUNTED] = [[1], [0]]
    return mended


def _file(cache: Path | None, name: str, about: object) -> Path | None:
    """The file that keeps numbers about something."""
    if cache is None:
        return None
    return cache / f"{name}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.npy"


def counted_text(
    one: ShardSet,
    index: Index,
    hashes: Sequence[str],
    *,
    tokenizer_file: Path,
    tokenizer_hash: str,
    template: str,
    cache: Path | None,
    ranks: Ranks,
) -> Counts:
    """Text and label tokens of every sample of a set of shards, from the cache or counted now.

    Args:
        one: the set.
        index: of its folder.
        hashes: SHA-256 of each shard.
        tokenizer_file, tokenizer_hash: tokenizer.json and its SHA-256.
        template: the chat template.
        cache: folder in which counts are kept; None keeps none.
        ranks: who shares the work.
    Returns:
        int32 [2, samples]: tokens beside the image tokens, supervised tokens; −1 where a sample is damaged or its shard
        gone. A table with such is not kept: the shard may be mended.
    """

    def work(start: int, stop: int) -> Counts:
        return _count(one, index, start, stop, Conversation(tokenizer_file.read_text("utf-8"), template))

    about = [list(zip(one.shard_names, hashes, strict=True)), tokenizer_hash, template]
    file = _file(cache, "text", about)
    return shared_table(file, (2, one.samples), work, ranks, keep=_whole, say="texts counted")


def _whole(table: Counts) -> bool:
    """Whether all samples could be counted."""
    return bool(table.min(initial=0) >= 0)


def _count(one: ShardSet, index: Index, start: int, stop: int, conversation: Conversation) -> Counts:
    """Count samples start … stop − 1, wherever their shards are."""
    counted = np.full((2, stop - start), UNCOUNTED, np.int32)
    reader = ShardReader(Corpus([one], [index]))
    try:
        keys = (index.key(number) for number in range(start, stop))
        for place, (key, text) in enumerate(zip(keys, reader.texts(map(index.entry, range(start, stop))), strict=True)):
            if isinstance(text, ShardError):
                continue
            try:
                sample = Sample.from_json(text, key)
                counted[:, place] = conversation.count(sample.messages, len(sample.images))
            except (SampleError, ConversationError):
                continue
    finally:
        reader.close()
    return counted
