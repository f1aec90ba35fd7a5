"""The order of training as arithmetic: the packs of global step s are a pure function of a PlanSpec and s.

    python -m train.pipeline.plan verify RUN    recompute a run's steps and name the first that was trained on others

Neither the number of ranks nor what happened before a step has a part in it, so resuming is asking for a step, on any
number of ranks. Only the window of the order that a step lies in is packed; how many packs each window makes is counted
once and kept. NumPy only; workers and tools may import it without torch.
"""

import hashlib
import math
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.pipeline.corpus import Corpus
from train.pipeline.dealing import GlobalBatch, MicroStep, Pack, deal_packs, work_of
from train.pipeline.drawing import check_lengths, draws_per_epoch
from train.pipeline.lengths import Lengths
from train.pipeline.order import Counts, EpochOrder, Ints, Stream
from train.pipeline.pack import PackList, pack_window
from train.pipeline.sharing import Alone, Ranks, shared_table
from train.pipeline.spec import PlanError, PlanSpec

# Kept from one call to the next: a loader looks ahead by less, and goes through both in order.
KEPT_WINDOWS = 16
COUNTED_EPOCHS = 64  # before the first step, where the number of steps is given
KEPT_BATCHES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFigures:
    """What an epoch amounts to."""

    samples: int
    over_long: int
    """Samples that no pack takes."""
    cut_down: int
    """Samples whose pictures are cut into fewer crops so that a pack takes them."""
    packs: int
    steps: int
    tokens: int
    labels: int
    crops: int
    fill: float
    """Share of the packs' tokens that is used."""


class Plan:
    """The packs of every step, computed a window of the order at a time."""

    def __init__(self, spec: PlanSpec, corpus: Corpus, lengths: Lengths, cache: Path | None = None) -> None:
        """
        Args:
            spec: the settings.
            corpus: the samples of the shards that `spec` pins.
            lengths: of every sample of the corpus.
            cache: folder where the packs of each window are kept as numbers; None keeps none.
        Raises:
            PlanError: no sample fits into a pack; one does not and `over_long` is "error".
        """
        samples = [source.samples for source in spec.sources]
        if not len(corpus) == len(lengths.tokens) == sum(samples):
            raise ValueError(
                f"corpus, lengths and spec disagree: {len(corpus)}, {len(lengths.tokens)}, {sum(samples)} samples"
            )
        self.spec = spec
        self.corpus = corpus
        self.lengths = lengths
        self.over_long: Ints = np.flatnonzero(lengths.tokens > spec.pack_length)
        """Samples that are left out because no pack takes them."""
        check_lengths(spec, lengths.tokens, self.over_long, self.key)
        self._cache = cache
        self._starts: Ints = np.concatenate([[0], np.cumsum(samples)]).astype(np.int64)
        self._has_pictures = bool(lengths.crops.any())
        self.draws = draws_per_epoch(spec, lengths.tokens)
        """Samples that an epoch takes from each source, those too long included."""
        block_shards = max(1, spec.block_shards // len(spec.sources))
        self._order = EpochOrder(
            [
                Stream(
                    [shard.samples for shard in source.shards],
                    seed=spec.seed,
                    block_shards=block_shards,
                    shuffle=spec.shuffle,
                    number=number,
                )
                for number, source in enumerate(spec.sources)
            ],
            self.draws,
            window=spec.window,
            seed=spec.seed,
            shuffle=spec.shuffle,
        )
        self._ends: dict[int, Ints] = {}
        self._steps = [0]
        """Of the epochs before each epoch together, as far as they were asked for."""
        self._windows: OrderedDict[tuple[int, int], PackList] = OrderedDict()
        self._batches: OrderedDict[int, GlobalBatch] = OrderedDict()
        self._dealt: tuple[int, int, list[list[Pack]]] = (-1, 0, [])
        """The step and the number of ranks asked for last, and what they were dealt."""

    def key(self, sample: int) -> str:
        """The key of a sample, by its number in the corpus."""
        return self.corpus.key(sample)

    def source_of(self, samples: Ints) -> Ints:
        """The source that each sample belongs to; int64."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def members(self, epoch: int, window: int) -> Ints:
        """The samples of one window of an epoch that a pack takes, in their order; int64."""
        members = self._order.window(epoch, window)
        return members[self.lengths.tokens[members] <= self.spec.pack_length]

    def _window(self, epoch: int, window: int) -> PackList:
        if (epoch, window) not in self._windows:
            members = self.members(epoch, window)
            self._windows[epoch, window] = pack_window(
                members,
                self.lengths.tokens[members].astype(np.int64),
                capacity=self.spec.pack_length,
                shuffle=self.spec.shuffle,
                seed=self.spec.seed,
                epoch=epoch,
                window=window,
            )
            if len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]

    def _ends_of(self, epoch: int, ranks: Ranks) -> Ints:
        """Packs up to and with each window of an epoch, int64 [windows + 1] from 0; counted by all ranks together."""
        epoch = self._arithmetic_epoch(epoch)
        if epoch not in self._ends:

            def work(start: int, stop: int) -> Counts:
                return np.array([[len(self._window(epoch, window)) for window in range(start, stop)]], np.int32)

            file = None
            if self._cache and self._order.windows > KEPT_WINDOWS:
                total = int(self.lengths.tokens.sum(dtype=np.int64))
                file = self._cache / f"packs-{self.spec.fingerprint()[:32]}-{total}-{epoch}.npy"
            counts = shared_table(file, (1, self._order.windows), work, ranks, say=f"windows of epoch {epoch} packed")
            self._ends[epoch] = np.concatenate([[0], np.cumsum(counts[0], dtype=np.int64)])
        return self._ends[epoch]

    def _arithmetic_epoch(self, epoch: int) -> int:
        """The epoch whose packs an epoch has: the first's where nothing is shuffled."""
        return epoch if self.spec.shuffle else 0

    def prepare(self, ranks: Ranks, *, epochs: int = 1, steps: int | None = None) -> None:
        """Count the packs of the first epochs, by all ranks together; every rank calls it alike.

        Args:
            epochs: so many of them,
            steps: or fewer, where they hold so many steps. Only a small set has more than COUNTED_EPOCHS then: the rest
                of them is counted by each rank when it comes to them.
        """
        for epoch in range(epochs if steps is None else min(epochs, COUNTED_EPOCHS)):
            self._ends_of(epoch, ranks)
            if steps is not None and self.steps_until(epoch + 1) >= steps:
                break

    def packs_in(self, epoch: int) -> int:
        """Packs of one epoch; epochs may differ by a few."""
        return int(self._ends_of(epoch, Alone())[-1])

    def steps_in(self, epoch: int) -> int:
        """Optimiser steps of one epoch; raises PlanError where last_batch: drop leaves none."""
        packs, size = self.packs_in(epoch), self.spec.global_batch_packs
        steps = packs // size if self.spec.last_batch == "drop" else -(-packs // size)
        if steps == 0:
            raise PlanError(
                f"an epoch makes {packs} packs, fewer than global_batch_packs {size}, and last_batch: drop leaves "
                "no step; lower global_batch_packs or set last_batch to short or wrap"
            )
        return steps

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of the first epoch."""
        return self.steps_in(0)

    def steps_until(self, epochs: int) -> int:
        """Optimiser steps of the first `epochs` epochs together."""
        while len(self._steps) <= epochs:
            self._steps.append(self._steps[-1] + self.steps_in(len(self._steps) - 1))
        return self._steps[epochs]

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch in which global step `step` (from 0) lies, and its place therein."""
        if step < 0:
            raise ValueError(f"step is {step}, must not be negative")
        while self._steps[-1] <= step:
            self.steps_until(len(self._steps))
        epoch = bisect_right(self._steps, step) - 1
        return epoch, step - self._steps[epoch]

    def _pack(self, number: int, samples: Ints) -> Pack:
        tokens = self.lengths.tokens[samples].astype(np.int64)
        crops = int(self.lengths.crops[samples].sum())
        return Pack(
            number=number,
            samples=tuple(samples.tolist()),
            tokens=int(tokens.sum()),
            labels=int(self.lengths.labels[samples].sum()),
            crops=crops,
            work=work_of(tokens, crops),
        )

    def batch(self, step: int) -> GlobalBatch:
        """The packs of global step `step`, the same for any number of ranks."""
        if step not in self._batches:
            epoch, place = self.locate(step)
            ends = self._ends_of(epoch, Alone())
            size, total = self.spec.global_batch_packs, int(ends[-1])
            stop = (place + 1) * size
            if self.spec.last_batch != "wrap":
                stop = min(stop, total)
            packs = []
            for number, pack in enumerate(range(place * size, stop)):
                window = int(np.searchsorted(ends, pack % total, side="right")) - 1
                samples = self._window(self._arithmetic_epoch(epoch), window).of(pack % total - int(ends[window]))
                packs.append(self._pack(number, samples))
            self._batches[step] = GlobalBatch(step=step, epoch=epoch, packs=tuple(packs))
            if len(self._batches) > KEPT_BATCHES:
                self._batches.popitem(last=False)
        return self._batches[step]

    def deal(self, step: int, rank: int, world: int) -> list[MicroStep]:
        """One rank's micro-steps of a global step: ceil(packs / world) of them on every rank."""
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, must be 0 … {world - 1}")
        if self._dealt[:2] != (step, world):
            self._dealt = step, world, deal_packs(self.batch(step).packs, world)
        micro_steps = []
        for dealt in self._dealt[2]:
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

    def times_trained(self, epoch: int = 0) -> Counts:
        """How often an epoch trains on each sample; int32 [samples]. More than once only in a weighted mixture."""
        if not self.spec.weighted:
            return (self.lengths.tokens <= self.spec.pack_length).astype(np.int32)
        times = np.zeros(len(self.corpus), np.int32)
        for window in range(self._order.windows):
            np.add.at(times, self.members(self._arithmetic_epoch(epoch), window), 1)
        return times

    def figures(self, epoch: int = 0) -> PlanFigures:
        """What an epoch amounts to, before any of it is read."""
        times, packs = self.times_trained(epoch), self.packs_in(epoch)
        tokens, labels, crops = (
            int(np.einsum("i,i->", times, values, dtype=np.int64))
            for values in (self.lengths.tokens, self.lengths.labels, self.lengths.crops)
        )
        return PlanFigures(
            samples=int(times.sum(dtype=np.int64)),
            over_long=len(self.over_long),
            cut_down=int(np.count_nonzero((self.lengths.num_crops < self.spec.num_crops) & (times > 0))),
            packs=packs,
            steps=self.steps_in(epoch),
            tokens=tokens,
            labels=labels,
            crops=crops,
            fill=tokens / (packs * self.spec.pack_length),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit code."""
    from train.pipeline import verify

    return verify.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
