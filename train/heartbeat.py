"""Where every rank is and since when, told beside the collectives: one that hangs is named, and all end.

Each rank has a thread that tells rank 0's, over a connection of their own. Who has done the fewest phases is waited for
by all others, so it alone is looked at: once it stays in one phase for longer than is allowed, or says nothing for as
long, every rank writes the stacks of its threads and ends. That takes at most the limit and three beats.
"""

import faulthandler
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from train.distributed import World

LONGEST_BEAT_S = 5.0
STALLED = 1
WAITING = "waiting for the others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a rank said of itself last."""

    rank: int
    host: str
    phase: str
    step: int
    position: int
    """Phases begun so far: equal work on all ranks makes it comparable."""
    for_s: float
    """Seconds in this phase when it was said."""
    heard_at: float = 0.0
    """On the clock of the one who heard it."""

    def describe(self, now: float) -> str:
        """One line for a person."""
        seconds = self.for_s + now - self.heard_at
        return f"rank {self.rank} on {self.host}: in '{self.phase}' of step {self.step} for {seconds:.0f} s"


def verdict(beats: Mapping[int, Beat], now: float, limit_s: float, limits: Mapping[str, float]) -> str | None:
    """Who holds the others up, and a line for each rank; None while nobody does for longer than is allowed.

    limit_s: seconds that a rank may say nothing or stay in a phase; limits: of phases that may take longer.
    """
    silent = [beat for beat in beats.values() if now - beat.heard_at > limit_s]
    last = min(beat.position for beat in beats.values())
    stuck = [
        beat
        for beat in beats.values()
        if beat.position == last and beat.for_s + now - beat.heard_at > limits.get(beat.phase, limit_s)
    ]
    if not silent and not stuck:
        return None
    blamed = [
        f"rank {beat.rank} on {beat.host} has given no sign of life for {now - beat.heard_at:.0f} s, "
        f"in '{beat.phase}' of step {beat.step}"
        for beat in silent
    ] or [
        f"rank {beat.rank} on {beat.host} has been in '{beat.phase}' of step {beat.step} for "
        f"{beat.for_s + now - beat.heard_at:.0f} s"
        for beat in stuck
    ]
    lines = "".join(f"\n  {beats[rank].describe(now)}" for rank in sorted(beats))
    return f"stalled: {'; '.join(blamed)}{lines}"


class Heart:
    """This rank's side; on rank 0 also the one that listens. Before `start` and after `stop` it only takes notes."""

    def __init__(
        self,
        world: World,
        folder: Path,
        limit_s: float,
        limits: Mapping[str, float] | None = None,
        failed: Callable[[str], object] = lambda reason: None,
        ended: Callable[[str], object] = lambda reason: None,
    ) -> None:
        """
        folder: where the ranks' stacks are written.
        limit_s, limits: as for `verdict`.
        failed: told the verdict, on rank 0, before all end.
        ended: told who is to blame, on each rank that ends.
        """
        self._world = world
        self._folder = folder
        self._limit_s = limit_s
        self._limits = dict(limits or {})
        self._failed = failed
        self._ended = ended
        self._beat_s = min(LONGEST_BEAT_S, limit_s / 10)
        self._own = Beat(rank=world.rank, host=socket.gethostname(), phase="start", step=0, position=0, for_s=0.0)
        self._since = time.monotonic()
        self._stopped = threading.Event()
        self._beats: dict[int, Beat] = {}
        self._verdict: str | None = None
        self._server: socket.socket | None = None
        self._address = ("", 0)
        self._token = ""

    def mark(self, phase: str, step: int | None = None) -> None:
        """A phase begins; every rank begins the same ones in the same order."""
        own = self._own
        self._own = replace(own, phase=phase, position=own.position + 1, step=own.step if step is None else step)
        self._since = time.monotonic()

    def alive(self, phase: str) -> None:
        """There is progress within a phase, told perhaps by another thread: nothing where another phase is on."""
        if self._own.phase == phase:
            self._since = time.monotonic()

    def start(self) -> None:
        """Begin to tell and, on rank 0, to listen; collective."""
        world = self._world
        place = ("", 0, "")
        if world.first:
            several_nodes = world.place.local_world_size < world.size
            self._server = socket.create_server(("" if several_nodes else "127.0.0.1", 0), backlog=1024)
            self._server.settimeout(self._beat_s)
            host = os.environ.get("MASTER_ADDR", "127.0.0.1") if several_nodes else "127.0.0.1"
            place = (host, self._server.getsockname()[1], secrets.token_hex(16))
        host, port, self._token = world.from_first(lambda: place)
        self._address = (host, port)
        now = time.monotonic()
        for rank, name in enumerate(world.gather_objects(self._own.host)):
            self._beats[rank] = replace(self._own, rank=rank, host=name, heard_at=now)
        self._since = now
        for work in [self._tell, *([self._listen] if world.first else [])]:
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Nothing is told or looked at any longer."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def now(self) -> Beat:
        """What this rank says of itself."""
        return replace(self._own, for_s=time.monotonic() - self._since)

    def _tell(self) -> None:
        """Tell rank 0 every beat where this rank is, and end when it says so or is not there for too long."""
        heard_at = time.monotonic()
        while not self._stopped.wait(self._beat_s):
            # Where even this thread stands still (a call that never gives the interpreter back), a watchdog in C ends
            # the process with its stacks.
            faulthandler.dump_traceback_later(self._limit_s + 4 * self._beat_s, exit=True)
            try:
                answer = self._ask()
                heard_at = time.monotonic()
            except (OSError, ValueError):
                answer = {}
                silent_s = time.monotonic() - heard_at
                if silent_s > self._limit_s:
                    host = self._beats[0].host
                    answer = {"end": f"stalled: rank 0 on {host} has given no sign of life for {silent_s:.0f} s"}
            if answer.get("end"):
                self._end(answer["end"])

    def _ask(self) -> dict[str, str]:
        with socket.create_connection(self._address, timeout=4 * self._beat_s) as line:
            line.sendall(json.dumps({"token": self._token, "beat": asdict(self.now())}).encode() + b"\n")
            with line.makefile("rb") as reply:
                answer: dict[str, str] = json.loads(reply.readline())
                return answer

    def _listen(self) -> None:
        """Rank 0: hear the beats, and judge."""
        assert self._server is not None
        judged = time.monotonic()
        with self._server:
            while not self._stopped.is_set():
                # Nobody came within a beat, or somebody else than a rank did.
                with suppress(OSError, ValueError, KeyError, TypeError):
                    self._hear(self._server.accept()[0])
                now = time.monotonic()
                if self._verdict is None and now - judged > self._beat_s:
                    judged = now
                    found = verdict(self._beats, now, self._limit_s, self._limits)
                    if found is not None:
                        # Before any rank hears it: the first to end breaks the collectives of all others.
                        self._say(found)
                    self._verdict = found

    def _hear(self, line: socket.socket) -> None:
        with line:
            line.settimeout(self._beat_s)
            with line.makefile("rb") as said:
                values = json.loads(said.readline(4096))
            if values["token"] == self._token:
                beat = Beat(**(values["beat"] | {"heard_at": time.monotonic()}))
                self._beats[beat.rank] = beat
                line.sendall(json.dumps({"end": self._verdict or ""}).encode() + b"\n")

    def _say(self, reason: str) -> None:
        """Rank 0: say why all end, for good, and write down where it is itself."""
        print(f"error: {reason}\nstacks of all ranks: {self._folder}", file=sys.stderr, flush=True)
        self._failed(reason)
        self._write_stacks(reason)

    def _write_stacks(self, reason: str) -> None:
        print(f"stacks of rank {self._world.rank}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        path = self._folder / f"rank-{self._world.rank:05d}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as file:
                file.write(reason + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr, flush=True)

    def _end(self, reason: str) -> None:
        """Write the stacks of all threads, and end this process at once."""
        self._ended(reason.partition("\n")[0])
        if self._world.first:
            if self._verdict is None:
                self._say(reason)
            time.sleep(2 * self._beat_s)  # the other ranks hear it at their next beat, from this process
        else:
            self._write_stacks(reason)
        os._exit(STALLED)
