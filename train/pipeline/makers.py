"""Who makes packs in the background: a thread of the rank, or worker processes, started again when they are killed."""

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from data.schema import UserError
from train.pipeline.batch import Batch
from train.pipeline.encode import EncoderSettings, Job, Made, PackMaker
from train.pipeline.events import Event, say
from train.pipeline.passing import Borrower, channel, send

ROOT = Path(__file__).resolve().parents[2]
CLOSE_TIMEOUT_S = 5.0
DEATHS_AT_ONE_PACK = 3
LOOK_EVERY_S = 1.0
PREFETCHED = 256  # shards that a worker started anew looks for; those that are there cost it nothing
SAY_AFTER_S = 60.0
SILENCE_BEYOND_PATIENCE_S = 120.0
"""What a worker may take for a pack, beside sitting out failures of the storage."""
# Signals that reach all processes of a job are the rank's to answer: it may still need packs to get to a checkpoint.
# A worker ends when its rank closes the channel or is gone.
FOR_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# One thread each: there are as many workers as cores for them. Memory that was freed is kept (glibc gives large blocks
# back at once and has the kernel clear new ones): a worker decodes pictures of like sizes all its life.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}


class LoaderError(UserError):
    """The stream cannot go on for a reason outside the program: a pack kills its workers, a shard cannot be read."""


class WorkerFailed(RuntimeError):
    """A bug or a system error in a worker, with its traceback."""


class Interrupted(Exception):
    """The wait for a pack was given up because the rank was asked to leave."""


class Maker(Protocol):
    """Makes packs in the background; results are called for in the order of submission."""

    def submit(self, job: Job) -> Callable[[], Made]: ...

    def prefetch(self, shards: Sequence[int]) -> None: ...

    def close(self) -> None: ...


class ThreadMaker:
    """One thread of this process: for tests, small machines and where processes cannot be started."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._maker = PackMaker(settings)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def submit(self, job: Job) -> Callable[[], Made]:
        return self._pool.submit(self._maker.make, job).result

    def prefetch(self, shards: Sequence[int]) -> None:
        self._maker.prefetch(shards)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._maker.close()


class ProcessMaker:
    """One worker process at a time. Where it is killed another one takes its place, and makes the same packs."""

    def __init__(self, name: str, settings: EncoderSettings, asked: Callable[[], bool]) -> None:
        """
        Args:
            name: for messages.
            settings: of the encoder.
            asked: whether the rank was asked to leave, so that nothing is waited for any longer.
        """
        self._name = name
        self._settings = settings
        self._asked = asked
        self._silence_s = settings.storage.patience_s + SILENCE_BEYOND_PATIENCE_S
        self._jobs: deque[Job] = deque()
        """Submitted and not yet received, in order."""
        self._deaths = 0
        """While the first of them was made."""
        self._events: list[Event] = []
        self._prefetched: deque[int] = deque(maxlen=PREFETCHED)
        self._start()

    def _start(self) -> None:
        self._end, theirs = channel()
        self._borrower = Borrower(self._end)
        kept = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RANK)  # the worker inherits it, and stays deaf to them
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "train.pipeline.worker", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | ENVIRONMENT,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        self._send({"settings": self._settings.to_json()})
        if self._prefetched:
            self._send({"prefetch": list(self._prefetched)})
        for job in self._jobs:
            self._send({"job": job.to_json()})

    def submit(self, job: Job) -> Callable[[], Made]:
        self._jobs.append(job)
        self._send({"job": job.to_json()})
        return self._receive

    def prefetch(self, shards: Sequence[int]) -> None:
        self._prefetched.extend(shards)
        self._send({"prefetch": list(shards)})

    def _send(self, value: object) -> None:
        try:
            send(self._end, value)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead, which is found and mended where its packs are waited for

    def _receive(self) -> Made:
        while True:
            self._wait()
            try:
                text, arrays = self._borrower.receive()
            except EOFError:
                self._replace()
                continue
            break
        job = self._jobs.popleft()
        self._deaths = 0
        if "error" in text:
            if text["trace"] is None:
                raise LoaderError(text["error"])
            raise WorkerFailed(f"{self._name}, pack {job.number} of step {job.step}:\n{text['trace']}")
        events, self._events = self._events, []
        events += [Event(**one) for one in text["events"]]
        return Made(batch=Batch.of(arrays, text["batch"]), seconds=text["seconds"], events=tuple(events))

    def _wait(self) -> None:
        """Wait for an answer or the worker's end; say so when it takes long, and end it when it takes too long."""
        waiting = select.poll()
        waiting.register(self._end, select.POLLIN)
        begun = time.monotonic()
        said = 0
        while not waiting.poll(LOOK_EVERY_S * 1000):
            if self._asked():
                raise Interrupted
            waited = time.monotonic() - begun
            job = self._jobs[0]
            if waited > self._silence_s:
                raise LoaderError(
                    f"{self._name} (process {self._process.pid}) has not made pack {job.number} of step {job.step} in "
                    f"{waited:.0f} s and does not say why: is a file system hanging? See to it, then start the run "
                    "again, it goes on"
                )
            if waited >= (said + 1) * SAY_AFTER_S:
                said += 1
                say(f"data: {self._name} has been at pack {job.number} of step {job.step} for {waited:.0f} s")

    def _replace(self) -> None:
        """Start another process in place of one that was killed; it makes what the dead one had not handed over."""
        code = self._process.wait(CLOSE_TIMEOUT_S)
        who = f"{self._name} (process {self._process.pid})"
        if code >= 0:
            raise LoaderError(f"{who} ended with exit code {code}; what it says stands above")
        out_of_memory = ", as the kernel does when memory runs out (see dmesg)" if code == -signal.SIGKILL else ""
        how = f"was ended by {signal.Signals(-code).name}{out_of_memory}"
        job = self._jobs[0]
        self._deaths += 1
        if self._deaths >= DEATHS_AT_ONE_PACK:
            raise LoaderError(
                f"{who} {how}, {self._deaths} times at pack {job.number} of step {job.step} with the samples "
                f"{', '.join(map(str, job.samples[:5]))} …; give it more memory (fewer data.workers), then start "
                "the run again, it goes on"
            )
        self._end.close()
        self._borrower.close()
        what = f"{how} at pack {job.number} of step {job.step}; started again, its {len(self._jobs)} packs made anew"
        self._events.append(Event(event="worker", where=who, what=what))
        self._start()

    def close(self) -> None:
        self._end.close()
        self._borrower.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
