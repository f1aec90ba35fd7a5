"""The rank's stream of batches: packs made in the background, some steps ahead, and handed over in order."""

import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

from data.schema import UserError
from train.pipeline.batch import Batch, assemble
from train.pipeline.encode import EncoderSettings, Job, PackMaker
from train.pipeline.passing import channel, receive, send
from train.pipeline.plan import MicroStep, Plan

ROOT = Path(__file__).resolve().parents[2]
PACKS_AHEAD = 4  # per worker, beside the pack in the making
CLOSE_TIMEOUT_S = 5.0


class LoaderError(UserError):
    """The stream cannot go on for a reason outside the program: a worker was killed, a shard is gone."""


class WorkerFailed(RuntimeError):
    """A bug or a system error in a worker, with its traceback."""


class Maker(Protocol):
    """Makes packs in the background; results are called for in the order of submission."""

    def submit(self, job: Job) -> Callable[[], Batch]: ...

    def close(self) -> None: ...


class ThreadMaker:
    """One thread of this process: for tests, small machines and where processes cannot be started."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._maker = PackMaker(settings)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def submit(self, job: Job) -> Callable[[], Batch]:
        return self._pool.submit(self._maker.make, job).result

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class ProcessMaker:
    """One worker process."""

    def __init__(self, name: str, settings: EncoderSettings) -> None:
        self._name = name
        self._end, theirs = channel()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "train.pipeline.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        self._send(settings)

    def submit(self, job: Job) -> Callable[[], Batch]:
        self._send(job)
        return lambda: self._receive(job)

    def _send(self, value: EncoderSettings | Job) -> None:
        try:
            send(self._end, value)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._ended() from error

    def _receive(self, job: Job) -> Batch:
        try:
            answer, arrays = receive(self._end)
        except EOFError as error:
            raise self._ended() from error
        if "batch" in answer:
            return Batch(**arrays, **answer["batch"])
        if answer["trace"] is None:
            raise LoaderError(answer["error"])
        raise WorkerFailed(f"{self._name}, pack {job.number} of step {job.step}:\n{answer['trace']}")

    def _ended(self) -> LoaderError:
        code = self._process.wait(CLOSE_TIMEOUT_S)
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        hint = "; the kernel does this when memory runs out (see dmesg)" if code == -signal.SIGKILL else ""
        return LoaderError(
            f"{self._name} (process {self._process.pid}) ended by {how}{hint}; start the run again, it goes on at its "
            "checkpoint"
        )

    def close(self) -> None:
        self._end.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Loader:
    """Iterates over (step, batches of this rank's micro-steps). Left early, it is closed by `close` or as a context."""

    def __init__(
        self,
        plan: Plan,
        split_folder: Path,
        tokenizer_file: Path,
        *,
        rank: int,
        world: int,
        start_step: int,
        end_step: int,
        workers: int = 1,
        ahead_bytes: int = 512 * 2**20,
    ) -> None:
        """
        Args:
            plan: equal on all ranks.
            split_folder: the folder of the split's shards and index.
            tokenizer_file: tokenizer.json, of the plan's hash.
            rank, world: of this process; any world size sees the same global batches.
            start_step, end_step: first step, and the one after the last.
            workers: processes that read and encode; 0 uses a thread of this one.
            ahead_bytes: bound of what is made or being made and not yet handed over; one pack is always allowed.
        """
        spec = plan.spec
        settings = EncoderSettings(
            folder=split_folder.resolve(),
            shard_names=tuple(shard.name for shard in spec.shards),
            tokenizer_file=tokenizer_file.resolve(),
            template=spec.template,
            num_crops=spec.num_crops,
            crop_size=spec.crop_size,
            tokens_per_side=spec.tokens_per_side,
            max_open=spec.block_shards,
        )
        self.waited_s = 0.0
        """Seconds that the latest step was waited for."""
        self._plan = plan
        self._rank, self._world, self._steps = rank, world, range(start_step, end_step)
        self._ahead_bytes = ahead_bytes
        self._makers: list[Maker] = [ThreadMaker(settings)] if workers == 0 else []
        try:
            for number in range(workers):
                self._makers.append(ProcessMaker(f"loader worker {number} of rank {rank}", settings))
        except BaseException:
            self.close()
            raise
        self._stream = self._iterate()

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        return self

    def __next__(self) -> tuple[int, list[Batch]]:
        try:
            return next(self._stream)
        except BaseException:
            self.close()
            raise

    def _iterate(self) -> Iterator[tuple[int, list[Batch]]]:
        todo = ((step, micro) for step in self._steps for micro in self._plan.deal(step, self._rank, self._world))
        waiting: deque[tuple[int, Callable[[], Batch]]] = deque()  # bytes, result
        upcoming = next(todo, None)
        submitted = outstanding = 0
        for step in self._steps:
            start = time.perf_counter()
            batches: list[Batch] = []
            wanted = math.ceil(len(self._plan.batch(step).packs) / self._world)
            while len(batches) < wanted:
                while upcoming and self._may_submit(waiting, outstanding, upcoming[1]):
                    size = self._bytes(upcoming[1])
                    waiting.append((size, self._submit(*upcoming, submitted)))
                    outstanding += size
                    submitted += 1
                    upcoming = next(todo, None)
                size, result = waiting.popleft()
                batches.append(result())
                outstanding -= size
            self.waited_s = time.perf_counter() - start
            yield step, batches
        self.close()

    def _may_submit(self, waiting: deque[tuple[int, Callable[[], Batch]]], outstanding: int, micro: MicroStep) -> bool:
        few = len(waiting) < (1 + PACKS_AHEAD) * len(self._makers)
        return not waiting or (few and outstanding + self._bytes(micro) <= self._ahead_bytes)

    def _bytes(self, micro: MicroStep) -> int:
        """At most what a pack takes: crops, and three int64 a token."""
        return micro.pack.crops * 3 * self._plan.spec.crop_size**2 + micro.pack.tokens * 24

    def _submit(self, step: int, micro: MicroStep, submitted: int) -> Callable[[], Batch]:
        pack = micro.pack
        if not pack.samples:
            empty = assemble(
                [],
                crop_size=self._plan.spec.crop_size,
                crop_chunks=micro.crop_chunks,
                label_chunks=micro.label_chunks,
                number=pack.number,
            )
            return lambda: empty
        job = Job(
            step=step,
            number=pack.number,
            samples=pack.samples,
            tokens=tuple(self._plan.lengths.tokens[list(pack.samples)].tolist()),
            crop_chunks=micro.crop_chunks,
            label_chunks=micro.label_chunks,
        )
        # Turn by turn, and results in the same order: what a worker sends next is always what is waited for next.
        return self._makers[submitted % len(self._makers)].submit(job)

    def close(self) -> None:
        """End the workers. A second call does nothing."""
        while self._makers:
            self._makers.pop().close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
