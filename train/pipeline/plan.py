"""The order of training as arithmetic: the packs of global step s are a pure function of a PlanSpec and s.

Neither the number of ranks nor what happened before a step has a part in it, so resuming is asking for a step, on any
number of ranks. NumPy only; workers and tools may import it without torch.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.pipeline.corpus import Corpus
from train.pipeline.lengths import Lengths
from train.pipeline.order import Ints, epoch_order
from train.pipeline.pack import PackList, pack_epoch
from train.pipeline.spec import PlanError, PlanSpec

# What a pack costs. A token through the decoder's matrices takes 2 × 3.7e9 operations; each token it attends to
# 4 × 3,072 × 32 layers more; a crop through the vision tower 2 × 0.3e9 × 577, as much as 47 tokens.
WORK_PER_TOKEN = 18_800
WORK_PER_PAIR = 1
WORK_PER_CROP = 47 * WORK_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Samples that are trained as one row, and what they weigh."""

    number: int
    """Place in the global batch; packs added to even out the ranks count on from its last one."""
    samples: tuple[int, ...]
    """Numbers in the corpus; none in an added pack."""
    tokens: int
    labels: int
    """Supervised tokens."""
    crops: int
    """Global views included."""
    work: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalBatch:
    """What one optimiser step trains, on however many ranks."""

    step: int
    epoch: int
    packs: tuple[Pack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroStep:
    """One rank's share of one forward and backward; the chunk counts are the same on all ranks."""

    pack: Pack
    crop_chunks: int
    """Calls of the vision tower; 0 only where the whole split has no picture."""
    label_chunks: int
    """Calls of the output head, at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFigures:
    """What an epoch amounts to."""

    samples: int
    over_long: int
    packs: int
    steps: int
    tokens: int
    labels: int
    crops: int
    fill: float
    """Share of the packs' tokens that is used."""


class Plan:
    """The packs of every step, computed an epoch at a time."""

    def __init__(self, spec: PlanSpec, corpus: Corpus, lengths: Lengths) -> None:
        """
        Args:
            spec: the settings.
            corpus: the samples of the shards that `spec` pins.
            lengths: of every sample of the corpus.
        Raises:
            PlanError: no sample fits into a pack; one does not and `over_long` is "error"; with `last_batch` "drop" the
                packs do not fill one batch.
        """
        if not len(corpus) == len(lengths.tokens) == sum(shard.samples for shard in spec.shards):
            raise ValueError(
                f"corpus, lengths and spec disagree: {len(corpus)}, {len(lengths.tokens)}, "
                f"{sum(shard.samples for shard in spec.shards)} samples"
            )
        self.spec = spec
        self.corpus = corpus
        self.lengths = lengths
        self.over_long: Ints = np.flatnonzero(lengths.tokens > spec.pack_length)
        """Samples that are left out because no pack takes them."""
        self._has_pictures = bool(lengths.crops.any())
        self._steps: list[int] = []
        self._epochs: dict[int, PackList] = {}
        self._check()

    def _check(self) -> None:
        spec, longest = self.spec, int(self.lengths.tokens.max(initial=0))
        if len(self.over_long) and spec.over_long == "error":
            raise PlanError(
                f"{spec.split}: {len(self.over_long)} of {len(self.corpus)} samples are longer than pack_length "
                f"{spec.pack_length}, first {self.key(int(self.over_long[0]))!r}, longest {longest} tokens; raise "
                "pack_length or lower num_crops, or set over_long: skip to train without them"
            )
        if len(self.over_long) == len(self.corpus):
            raise PlanError(
                f"{spec.split}: none of its {len(self.corpus)} samples fits into a pack of {spec.pack_length} tokens "
                f"(shortest {int(self.lengths.tokens.min(initial=longest))}); raise pack_length or lower num_crops"
            )
        if self.steps_in(0) == 0:
            raise PlanError(
                f"{spec.split}: an epoch makes {len(self._packs(0))} packs, fewer than global_batch_packs "
                f"{spec.global_batch_packs}, and last_batch: drop leaves no step; lower global_batch_packs or "
                "set last_batch to short or wrap"
            )

    def key(self, sample: int) -> str:
        """The key of a sample, by its number in the corpus."""
        return self.corpus.key(sample)

    def _packs(self, epoch: int) -> PackList:
        """The packs of an epoch. The two latest are kept: a loader that looks ahead crosses from one to the next."""
        spec = self.spec
        epoch = epoch if spec.shuffle else 0
        if epoch not in self._epochs:
            if spec.shuffle:
                counts = np.array([shard.samples for shard in spec.shards], np.int64)
                order = epoch_order(counts, seed=spec.seed, epoch=epoch, block_shards=spec.block_shards)
            else:
                order = np.arange(len(self.corpus), dtype=np.int64)
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = pack_epoch(
                order[self.lengths.tokens[order] <= spec.pack_length],
                self.lengths.tokens,
                capacity=spec.pack_length,
                window=spec.window,
                shuffle=spec.shuffle,
                seed=spec.seed,
                epoch=epoch,
            )
        return self._epochs[epoch]

    def steps_in(self, epoch: int) -> int:
        """Optimiser steps of one epoch; epochs may differ by a few, as their packs do."""
        while len(self._steps) <= epoch:
            packs = len(self._packs(len(self._steps)))
            exact = packs / self.spec.global_batch_packs
            self._steps.append(math.floor(exact) if self.spec.last_batch == "drop" else math.ceil(exact))
        return self._steps[epoch]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of the first epoch."""
        return self.steps_in(0)

    def steps_until(self, epochs: int) -> int:
        """Optimiser steps of the first `epochs` epochs together."""
        return sum(self.steps_in(epoch) for epoch in range(epochs))

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch in which global step `step` (from 0) lies, and its place therein."""
        if step < 0:
            raise ValueError(f"step is {step}, must not be negative")
        epoch = 0
        while step >= self.steps_in(epoch):
            step -= self.steps_in(epoch)
            epoch += 1
        return epoch, step

    def _pack(self, number: int, samples: Ints) -> Pack:
        tokens = self.lengths.tokens[samples].astype(np.int64)
        crops = int(self.lengths.crops[samples].sum())
        return Pack(
            number=number,
            samples=tuple(samples.tolist()),
            tokens=int(tokens.sum()),
            labels=int(self.lengths.labels[samples].sum()),
            crops=crops,
            work=int(tokens.sum()) * WORK_PER_TOKEN
            + int((tokens * tokens).sum()) // 2 * WORK_PER_PAIR
            + crops * WORK_PER_CROP,
        )

    def batch(self, step: int) -> GlobalBatch:
        """The packs of global step `step`, the same for any number of ranks."""
        epoch, place = self.locate(step)
        packs = self._packs(epoch)
        size = self.spec.global_batch_packs
        stop = (place + 1) * size
        if self.spec.last_batch != "wrap":
            stop = min(stop, len(packs))
        chosen = (packs.of(p % len(packs)) for p in range(place * size, stop))
        numbered = tuple(self._pack(number, samples) for number, samples in enumerate(chosen))
        return GlobalBatch(step=step, epoch=epoch, packs=numbered)

    def deal(self, step: int, rank: int, world: int) -> list[MicroStep]:
        """One rank's micro-steps of a global step: ceil(packs / world) of them on every rank."""
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, must be 0 … {world - 1}")
        micro_steps = []
        for dealt in deal_packs(self.batch(step).packs, world):
            crops = max(pack.crops for pack in dealt)
            labels = max(pack.labels for pack in dealt)
            micro_steps.append(
                MicroStep(
                    pack=dealt[rank],
                    crop_chunks=max(math.ceil(crops / self.spec.crops_per_chunk), int(self._has_pictures)),
                    label_chunks=max(math.ceil(labels / self.spec.labels_per_chunk), 1),
                )
            )
        return micro_steps

    def digest(self, step: int) -> str:
        """SHA-256 of the keys planned for a step, pack by pack, hex."""
        packs = ("\n".join(self.key(sample) for sample in pack.samples) for pack in self.batch(step).packs)
        return hashlib.sha256("\n\n".join(packs).encode()).hexdigest()

    def figures(self, epoch: int = 0) -> PlanFigures:
        """What an epoch amounts to, before any of it is read."""
        packs = self._packs(epoch)
        tokens = int(self.lengths.tokens[packs.samples].sum(dtype=np.int64))
        return PlanFigures(
            samples=len(packs.samples),
            over_long=len(self.over_long),
            packs=len(packs),
            steps=self.steps_in(epoch),
            tokens=tokens,
            labels=int(self.lengths.labels[packs.samples].sum(dtype=np.int64)),
            crops=int(self.lengths.crops[packs.samples].sum(dtype=np.int64)),
            fill=tokens / (len(packs) * self.spec.pack_length),
        )


def deal_packs(packs: Sequence[Pack], world: int) -> list[list[Pack]]:
    """Deal a batch's packs to ranks so that they carry equal work, in each micro-step and in sum.

    Ranks wait for one another in every layer, so a micro-step takes as long as its heaviest pack: packs of like weight
    go into one micro-step, and within it the heaviest to the rank that has carried least.

    Returns:
        [micro-step][rank] packs, ceil(packs / world) micro-steps; missing packs are empty ones.
    """
    heaviest_first = sorted(packs, key=lambda pack: (-pack.work, pack.number))
    carried = [0] * world
    dealt = []
    for first in range(0, len(packs), world):
        row = heaviest_first[first : first + world]
        row += [
            Pack(number=first + place, samples=(), tokens=0, labels=0, crops=0, work=0)
            for place in range(len(row), world)
        ]
        by_rank: list[Pack] = [row[0]] * world
        for pack, rank in zip(row, sorted(range(world), key=lambda rank: (carried[rank], rank)), strict=True):
            by_rank[rank] = pack
            carried[rank] += pack.work
        dealt.append(by_rank)
    return dealt
