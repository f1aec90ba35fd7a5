"""How many samples a second the loader makes on this machine: what a dry run sets against what the GPUs need."""

import time
from dataclasses import dataclass
from pathlib import Path

from train.pipeline.loader import Loader
from train.pipeline.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What was made in how long, the start of the workers taken off."""

    packs: int
    samples: int
    pictures: int
    tokens: int
    seconds: float
    workers: int
    """Processes that made it; 0 stands for a thread."""

    @property
    def packs_per_s(self) -> float:
        """Packs a second, ready for the device."""
        return self.packs / self.seconds

    @property
    def samples_per_s(self) -> float:
        """Samples a second, ready for the device."""
        return self.samples / self.seconds

    @property
    def pictures_per_s(self) -> float:
        """Pictures a second, ready for the device."""
        return self.pictures / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, ready for the device."""
        return self.tokens / self.seconds


def loader_rate(plan: Plan, tokenizer_file: Path, *, workers: int, packs: int = 1000, seconds: float = 10.0) -> Rate:
    """Make packs of the first epoch in the background, as training would, and say how quickly they come.

    It reads what the first of as many ranks would as a batch has packs, one pack a step. The first pack comes with the
    start of the workers and is not counted, unless the epoch has no other.

    Args:
        plan, tokenizer_file: as for the loader.
        workers: processes that read and encode; 0 uses a thread of this one.
        packs, seconds: stop at whichever comes first.
    Raises:
        UserError: what the loader raises.
    """
    steps = min(plan.steps_in(0), packs + 1)
    made = samples = pictures = tokens = 0
    begun = time.perf_counter()
    spent = 0.0
    with Loader(
        plan,
        tokenizer_file,
        rank=0,
        world=plan.spec.global_batch_packs,
        start_step=0,
        end_step=steps,
        workers=workers,
    ) as loader:
        for step, batches in loader:
            if step == 0 and steps > 1:
                begun = time.perf_counter()
                continue
            for batch in batches:
                made += bool(batch.keys)
                samples += len(batch.keys)
                pictures += len(batch.grids)
                tokens += len(batch.input_ids) if batch.keys else 0
            spent = time.perf_counter() - begun
            if spent >= seconds:
                break
    return Rate(packs=made, samples=samples, pictures=pictures, tokens=tokens, seconds=spent, workers=workers)
