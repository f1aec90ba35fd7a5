"""A split of a folder of shards as scoring sees it: samples, what is true of each, whose picture goes where."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.index import Index, IndexEntry
from data.manifest import Manifest
from data.schema import Sample, SampleError, UserError
from data.shards import ShardError
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.read import ShardReader
from train.score.fields import AnswerParser
from train.score.scores import Truth


class SplitError(UserError):
    """A split that is not there, or has nothing to score."""


class Split:
    """A split's samples by their numbers in its index."""

    def __init__(self, shards: Path, name: str | None = None) -> None:
        """Opens `shards`/`name`; without a name the test split, or the validation split where there is no test split.

        Raises UserError for no shards, a split that is not there or is empty, and fields that cannot be scored.
        """
        self.shards = Path(shards)
        self.manifest = Manifest.load(self.shards)
        sizes = {split: sum(shard["samples"] for shard in files) for split, files in self.manifest.shards.items()}
        there = ", ".join(f"{split} ({size} samples)" for split, size in sizes.items()) or "none"
        if name is None:
            held_out = [split for split in ("test", "validation") if sizes.get(split)]
            if not held_out:
                raise SplitError(f"{self.shards} has neither a test nor a validation split; there are: {there}")
            name = held_out[0]
        if name not in sizes:
            raise SplitError(f"{self.shards} has no split '{name}'; there are: {there}; name one by --split")
        if not sizes[name]:
            raise SplitError(f"{self.shards}: the split '{name}' is empty; there are: {there}; name another by --split")
        self.manifest.check_shards(self.shards, name)
        self.name = name
        self.index = Index.open(self.shards / name / "index.arrow")
        self.parser = AnswerParser(self.manifest.answer_template, self.manifest.fields)
        names = tuple(shard["name"] for shard in self.manifest.shards[name])
        own = ShardSet(folder=self.shards / name, shard_names=names, samples=len(self.index))
        self._corpus = Corpus([own], [self.index])
        self._reader = ShardReader(self._corpus)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int) -> tuple[Sample, list[bytes]]:
        """One sample and its pictures as stored; raises ShardError where the shard is damaged."""
        return self._reader.read(self.index.entry(number))

    def truths(self, numbers: Iterable[int] | None = None) -> Iterator[Truth]:
        """What is true of the samples, all of them or those with the given numbers; no picture is read."""
        for number in range(len(self)) if numbers is None else numbers:
            entry = self.index.entry(number)
            sample = self._text_of(entry)
            answers = [message["content"] for message in sample.messages if message["role"] == "assistant"]
            values = self.parser.truth(sample.target, answers[-1] if answers else "")
            yield Truth(key=sample.key, group=entry.group or sample.key, values=values)

    def read_text(self, number: int) -> Sample:
        """One sample without its pictures; raises ShardError where the shard is damaged."""
        return self._text_of(self.index.entry(number))

    def group_codes(self, count: int) -> NDArray[np.int64]:
        """int64 [count], equal for the first samples that are of one group; one without a group is its own."""
        codes: dict[str, int] = {}
        groups = (self.index.group(number) or f"\0{number}" for number in range(count))
        return np.fromiter((codes.setdefault(group, len(codes)) for group in groups), np.int64, count)

    def _text_of(self, entry: IndexEntry) -> Sample:
        (text,) = self._reader.texts([entry])
        if isinstance(text, ShardError):
            raise text
        try:
            return Sample.from_json(text, entry.key)
        except SampleError as error:
            path = self._corpus.shard_paths[entry.shard]
            raise ShardError(path, entry.key, entry.members[0].offset, str(error)) from error


def exchanged_pictures(counts: NDArray[np.int64], groups: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Whose pictures each sample gets instead of its own: never one of its own group where that can be.

    Every picture is used once. In a random order of the groups each picture moves on by the size of the largest group.

    Args:
        counts: int64 [n] pictures of each sample.
        groups: int64 [n] the group of each sample, numbers from 0 on.

    Returns:
        int64 [pictures, 2]: for each picture of the samples in turn, the sample whose picture is shown instead, and
        that one's place there.

    Raises:
        SplitError: there are no pictures of two samples to exchange.
    """
    if int((counts > 0).sum()) < 2:
        raise SplitError("pictures can only be shuffled among at least two samples that have some; take more samples")
    samples = np.repeat(np.arange(len(counts)), counts)
    slots = np.stack((samples, np.arange(len(samples)) - np.repeat(np.cumsum(counts) - counts, counts)), axis=1)
    place = np.random.default_rng(seed).permutation(int(groups.max()) + 1)[groups[samples]]
    order = np.argsort(place, kind="stable")
    largest = int(np.bincount(place).max())
    step = largest if largest < len(slots) else int(counts.max())
    received = np.empty_like(slots)
    received[order] = slots[np.roll(order, -step)]
    return received
