"""The rank's stream of batches: packs made in the background, some steps ahead, and handed over in order."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from train.pipeline.batch import Batch, assemble
from train.pipeline.dealing import MicroStep
from train.pipeline.encode import SECONDS, EncoderSettings, Job, Made
from train.pipeline.events import Event
from train.pipeline.makers import Maker, ProcessMaker, ThreadMaker
from train.pipeline.plan import Plan
from train.pipeline.prefetch import Prefetch
from train.pipeline.storage import Storage

PACKS_AHEAD = 4  # per worker, beside the pack in the making


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """How this rank came by its packs of a step."""

    waited_s: float = 0.0
    """Seconds that the step was waited for."""
    seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SECONDS, 0.0))
    """What the workers' seconds went into."""
    events: tuple[Event, ...] = ()
    """What happened meanwhile that a person should know of."""


class Loader:
    """Iterates over (step, batches of this rank's micro-steps). Left early, it is closed by `close` or as a context."""

    def __init__(
        self,
        plan: Plan,
        tokenizer_file: Path,
        *,
        rank: int,
        world: int,
        start_step: int,
        end_step: int,
        workers: int = 1,
        ahead_bytes: int = 512 * 2**20,
        storage: Storage | None = None,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            plan: equal on all ranks.
            tokenizer_file: tokenizer.json, of the plan's hash.
            rank, world: of this process; any world size sees the same global batches.
            start_step, end_step: first step, and the one after the last.
            workers: processes that read and encode; 0 uses a thread of this one.
            ahead_bytes: bound of what is made or being made and not yet handed over; one pack is always allowed.
            storage: how shards are read.
            asked: whether this rank was asked to leave: the wait for a pack is then given up.
        """
        spec = plan.spec
        settings = EncoderSettings(
            sets=tuple(replace(one, folder=one.folder.resolve()) for one in plan.corpus.sets),
            tokenizer_file=tokenizer_file.resolve(),
            template=spec.template,
            num_crops=spec.num_crops,
            crop_size=spec.crop_size,
            tokens_per_side=spec.tokens_per_side,
            max_open=spec.block_shards,
            storage=storage or Storage(),
        )
        self.latest = StepReport()
        """Of the step handed over last."""
        self._plan = plan
        self._rank, self._world = rank, world
        self._step, self._end_step = start_step, end_step
        self._ahead_bytes = ahead_bytes
        self._largest = 0
        """Bytes of the largest pack so far: what any block of shared memory may have grown to."""
        self._todo = self._micro_steps(start_step)
        self._next = next(self._todo, None)
        self._submitted = 0
        self._ahead: deque[tuple[int, Callable[[], Made]]] = deque()
        """Step and result of each pack submitted and not yet handed over, in order."""
        self._prefetch = Prefetch(plan, start_step=start_step, end_step=end_step, storage=settings.storage)
        self._makers: list[Maker] = [ThreadMaker(settings)] if workers == 0 else []
        try:
            for number in range(workers):
                self._makers.append(ProcessMaker(f"loader worker {number} of rank {rank}", settings, asked))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        if self._step >= self._end_step:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        step, made = self._step, []
        try:
            due = self._prefetch.due(step)
            if due:
                self._makers[0].prefetch(due)
            self._look_ahead()
            while self._ahead and self._ahead[0][0] == step:
                made.append(self._ahead[0][1]())
                self._ahead.popleft()
                self._look_ahead()
        except BaseException:
            self.close()
            raise
        self._step += 1
        self.latest = StepReport(
            waited_s=time.perf_counter() - start,
            seconds={name: sum(one.seconds.get(name, 0.0) for one in made) for name in SECONDS},
            events=tuple(event for one in made for event in one.events),
        )
        return step, [one.batch for one in made]

    def _micro_steps(self, start_step: int) -> Iterator[tuple[int, MicroStep]]:
        for step in range(start_step, self._end_step):
            for micro in self._plan.deal(step, self._rank, self._world):
                yield step, micro

    def _look_ahead(self) -> None:
        """Submit what comes next while there is room; at least one pack is in the making afterwards."""
        while self._next:
            largest = max(self._largest, self._bytes(self._next[1]))
            full = len(self._ahead) >= (1 + PACKS_AHEAD) * len(self._makers)
            if self._ahead and (full or (len(self._ahead) + 1) * largest > self._ahead_bytes):
                break
            self._largest = largest
            step, micro = self._next
            self._ahead.append((step, self._submit(step, micro)))
            self._next = next(self._todo, None)

    def _bytes(self, micro: MicroStep) -> int:
        """At most what a pack takes: crops, and three int64 a token."""
        return micro.pack.crops * 3 * self._plan.spec.crop_size**2 + micro.pack.tokens * 24

    def _submit(self, step: int, micro: MicroStep) -> Callable[[], Made]:
        pack = micro.pack
        if not pack.samples:
            crop_size = self._plan.spec.crop_size
            empty = assemble(
                [],
                crops=np.zeros((0, 3, crop_size, crop_size), np.uint8),
                crop_chunks=micro.crop_chunks,
                label_chunks=micro.label_chunks,
                number=pack.number,
            )
            return lambda: Made(batch=empty, seconds={})
        job = Job(
            step=step,
            number=pack.number,
            samples=pack.samples,
            tokens=tuple(self._plan.lengths.tokens[list(pack.samples)].tolist()),
            num_crops=tuple(self._plan.lengths.num_crops[list(pack.samples)].tolist()),
            crop_chunks=micro.crop_chunks,
            label_chunks=micro.label_chunks,
        )
        # Turn by turn, and results in the same order: what a worker sends next is always what is waited for next.
        maker = self._makers[self._submitted % len(self._makers)]
        self._submitted += 1
        return maker.submit(job)

    def close(self) -> None:
        """End the workers and the stream. A second call does nothing."""
        self._end_step = self._step
        self._ahead.clear()
        while self._makers:
            self._makers.pop().close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
