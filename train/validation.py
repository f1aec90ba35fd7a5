"""The loss on held-out samples, measured by all ranks without a trace in the training."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data_record import DataRecord
from train.distributed import World
from train.engine import Engine
from train.heartbeat import Heart
from train.loss import count_labels, mean_loss
from train.pipeline.batch import BadSample
from train.pipeline.events import Event
from train.pipeline.loader import Loader
from train.pipeline.makers import Interrupted
from train.pipeline.plan import Plan
from train.pipeline.storage import Storage

# A worker process takes a second to start; below this many packs a rank it is not worth one.
PACKS_A_WORKER = 64
MEASURING = "evaluate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is measured, and how it is read."""

    plan: Plan
    tokenizer: Path
    packs: int | None
    """Most packs, rounded up to whole batches; None for the whole split."""
    workers: int
    storage: Storage

    @property
    def batches(self) -> int:
        """Global batches of one measurement."""
        every = self.plan.steps_per_epoch
        if self.packs is None:
            return every
        return min(every, math.ceil(self.packs / self.plan.spec.global_batch_packs))

    def measure(
        self, engine: Engine, world: World, asked: Callable[[], bool], record: DataRecord, step: int, heart: Heart
    ) -> dict[str, Any] | None:
        """The mean loss over the supervised tokens, the same on every rank; None in its place where it is not finite.

        asked: whether this rank was asked to leave; then all ranks leave and the result is None.
        record, step: where bad samples are recorded, and under which step.
        heart: told of each batch.
        Returns loss, label_tokens, tokens, samples, bad, time.
        """
        begun = time.perf_counter()
        sums: list[float] = []
        counts = [0, 0, 0]
        bad: list[tuple[int, BadSample]] = []
        events: list[Event] = []
        with self._loader(world, asked) as loader:
            for place in range(self.batches):
                heart.mark(MEASURING)
                try:
                    _, batches = next(loader)
                except Interrupted:
                    batches = []
                if world.sum_integers([int(asked())])[0]:
                    return None
                events += loader.latest.events
                for batch in batches:
                    sums.append(float(engine.measure_pack(batch)))
                    found = (count_labels(batch.labels), len(batch.labels) if batch.keys else 0, len(batch.keys))
                    counts = [had + new for had, new in zip(counts, found, strict=True)]
                    number = place * self.plan.spec.global_batch_packs + batch.number
                    bad += [(number, sample) for sample in batch.bad]
        labels, tokens, samples, left_out, happened = world.sum_integers([*counts, len(bad), len(events)])
        if left_out or happened:
            record.add(step, "validation", bad, events)
        loss = mean_loss(world.gather_floats(sums), labels)
        return {
            "loss": loss if math.isfinite(loss) else None,
            "label_tokens": labels,
            "tokens": tokens,
            "samples": samples,
            "bad": left_out,
            "time": {"seconds": time.perf_counter() - begun},
        }

    def _loader(self, world: World, asked: Callable[[], bool]) -> Loader:
        packs = self.batches * self.plan.spec.global_batch_packs // world.size
        return Loader(
            self.plan,
            self.tokenizer,
            rank=world.rank,
            world=world.size,
            start_step=0,
            end_step=self.batches,
            workers=min(self.workers, packs // PACKS_A_WORKER),
            storage=self.storage,
            asked=asked,
        )
