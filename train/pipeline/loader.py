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
from dataclasses import replace
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
# Signals that reach all processes of a job are the rank's to answer: it may still need packs to get to a checkpoint.
# A worker ends when its rank closes the channel or is gone.
FOR_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


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
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RANK)  # the worker inherits it, and stays deaf to them
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "train.pipeline.worker", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
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
        if code >= 0:
            how = f"ended with exit code {code}; what it says stands above"
        else:
            out_of_memory = ", as the kernel does when memory runs out (see dmesg)" if code == -signal.SIGKILL else ""
            how = f"was ended by {signal.Signals(-code).name}{out_of_memory}; start the run again, it goes on"
        return LoaderError(f"{self._name} (process {self._process.pid}) {how}")

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
            tokenizer_file: tokenizer.json, of the plan's hash.
            rank, world: of this process; any world size sees the same global batches.
            start_step, end_step: first step, and the one after the last.
            workers: processes that read and encode; 0 uses a thread of this one.
            ahead_bytes: bound of what is made or being made and not yet handed over; one pack is always allowed.
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
        )
        self.waited_s = 0.0
        """Seconds that the latest step was waited for."""
        self._plan = plan
        self._rank, self._world = rank, world
        self._step, self._end_step = start_step, end_step
        self._ahead_bytes = ahead_bytes
        self._todo = self._micro_steps(start_step)
        self._next = next(self._todo, None)
        self._submitted = 0
        self._ahead: deque[tuple[int, Callable[[], Batch]]] = deque()
        """Bytes and result of each pack submitted and not yet handed over, in order."""
        self._makers: list[Maker] = [ThreadMaker(settings)] if workers == 0 else []
        try:
            for number in range(workers):
                self._makers.append(ProcessMaker(f"loader worker {number} of rank {rank}", settings))
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
        step, batches = self._step, []
        try:
            for _ in range(math.ceil(len(self._plan.batch(step).packs) / self._world)):
                self._look_ahead()
                batches.append(self._ahead[0][1]())
                self._ahead.popleft()
        except BaseException:
            self.close()
            raise
        self._step += 1
        self.waited_s = time.perf_counter() - start
        return step, batches

    def _micro_steps(self, start_step: int) -> Iterator[tuple[int, MicroStep]]:
        for step in range(start_step, self._end_step):
            for micro in self._plan.deal(step, self._rank, self._world):
                yield step, micro

    def _look_ahead(self) -> None:
        """Submit what comes next while there is room; at least one pack is in the making afterwards."""
        while self._next:
            size = self._bytes(self._next[1])
            full = len(self._ahead) >= (1 + PACKS_AHEAD) * len(self._makers)
            if self._ahead and (full or size + sum(taken for taken, _ in self._ahead) > self._ahead_bytes):
                break
            self._ahead.append((size, self._submit(*self._next)))
            self._next = next(self._todo, None)

    def _bytes(self, micro: MicroStep) -> int:
        """At most what a pack takes: crops, and three int64 a token."""
        return micro.pack.crops * 3 * self._plan.spec.crop_size**2 + micro.pack.tokens * 24

    def _submit(self, step: int, micro: MicroStep) -> Callable[[], Batch]:
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
