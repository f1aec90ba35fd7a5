"""How long each sample is, before any picture is read: text counted once, image tokens from the pictures' sizes."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.conversation import Conversation, ConversationError
from data.geometry import grids, image_tokens
from data.index import Index
from data.schema import Sample, SampleError, UserError
from data.whole import whole_file
from train.pipeline.order import Counts, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of every sample of an index."""

    tokens: Counts
    """int32 [samples], the whole sequence."""
    labels: Counts
    """int32 [samples], supervised tokens."""
    crops: Counts
    """int32 [samples], crops through the vision tower, global views included."""


def sample_lengths(
    index: Index, text: Counts, labels: Counts, *, num_crops: int, crop_size: int, tokens_per_side: int
) -> Lengths:
    """Add to the counted text what the pictures take at this geometry.

    Args:
        index: of the split, for the pictures' sizes.
        text: int32 [samples], tokens beside the image tokens.
        labels: int32 [samples], supervised tokens.
    Raises:
        UserError: a picture is too thin for this geometry.
    """
    try:
        shapes = grids(index.picture_sizes, num_crops, crop_size)
    except ValueError as error:
        raise UserError(f"{index.path}: {error}") from error
    rows, columns = shapes[:, 0], shapes[:, 1]
    cells = rows * columns
    offsets = index.picture_offsets
    pictures = _sums(image_tokens(rows, columns, tokens_per_side), offsets)
    return Lengths(
        tokens=(text + pictures).astype(np.int32),
        labels=labels.astype(np.int32),
        # A picture of one crop is its own global view.
        crops=_sums(cells + (cells > 1), offsets).astype(np.int32),
    )


def _sums(values: Ints, offsets: Ints) -> Ints:
    """Sums of values[offsets[i] : offsets[i + 1]]."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    return totals[offsets[1:]] - totals[offsets[:-1]]


def counted_text(
    folder: Path,
    index: Index,
    shards: Sequence[tuple[str, str]],
    *,
    tokenizer_file: Path,
    tokenizer_hash: str,
    template: str,
    cache: Path | None,
) -> tuple[Counts, Counts]:
    """Text and label tokens of every sample, from the cache or counted now.

    Args:
        folder: the split's.
        index: of the split.
        shards: (name, SHA-256) in the order of the index.
        tokenizer_file, tokenizer_hash: tokenizer.json and its SHA-256.
        template: the chat template.
        cache: folder in which counts are kept; None keeps none.
    Returns:
        int32 [samples] twice: tokens beside the image tokens, supervised tokens.
    """
    about = json.dumps([list(map(list, shards)), tokenizer_hash, template])
    file = cache / f"lengths-{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz" if cache else None
    found = _load(file, len(index)) if file else None
    if found is not None:
        return found
    conversation = Conversation(tokenizer_file.read_text("utf-8"), template)
    text, labels, damaged = _count(folder, index, [name for name, _ in shards], conversation)
    if file and not damaged:
        _save(file, text, labels)
    return text, labels


def _count(folder: Path, index: Index, names: Sequence[str], conversation: Conversation) -> tuple[Counts, Counts, bool]:
    """Count all samples; the third result says whether any could not be. Such a sample counts as one token: the reader
    will find it damaged too and leave it out, and its pack is that much emptier."""
    text, labels = np.ones(len(index), np.int32), np.zeros(len(index), np.int32)
    damaged = False
    shard, descriptor = -1, -1
    try:
        for number in range(len(index)):
            entry = index.entry(number)
            if entry.shard != shard:
                if descriptor >= 0:
                    os.close(descriptor)
                descriptor = _open(folder / names[entry.shard])
                shard = entry.shard
            said = entry.members[0]
            try:
                sample = Sample.from_json(os.pread(descriptor, said.size, said.offset), entry.key)
                text[number], labels[number] = conversation.count(sample.messages, len(sample.images))
            except (SampleError, ConversationError):
                damaged = True
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return text, labels, damaged


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; bring the shard back or build the shards again") from error


def _load(file: Path, samples: int) -> tuple[Counts, Counts] | None:
    """Kept counts; None if there are none or the file is damaged (they are then counted and written again)."""
    try:
        with np.load(file) as kept:
            text, labels = kept["text"], kept["labels"]
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return (text, labels) if len(text) == len(labels) == samples else None


def _save(file: Path, text: Counts, labels: Counts) -> None:
    with whole_file(file) as stream:
        np.savez(stream, text=text, labels=labels)
