"""The folder of a run: who holds it, what it was started with, how far it is, what it measured."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from data.schema import UserError
from data.whole import write_whole
from train.config import differences, dump, may_change, merged
from train.config_schema import Config
from train.lines import cut_lines

State = Literal["running", "preempted", "finished", "failed"]
MOMENT_S = 1.0
"""Whoever only asks who holds a run has its lock for less than this."""
LEASE_S = 120.0
"""NFS gives the lock of a lost node back within this (its lease is 90 s)."""


class RunError(UserError):
    """The run folder cannot be used for this start."""


class HeldError(RunError):
    """Another job is at work on the run."""


def own_job() -> str:
    """What the lock of a run says of this process's Slurm job; empty where it has none."""
    job = os.environ.get("SLURM_JOB_ID")
    return f", job {job}" if job else ""


def step_of(checkpoint: Path | None) -> int:
    """The step of a checkpoint, 0 where there is none."""
    return int(checkpoint.name.partition("-")[2]) if checkpoint else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier start of the run left."""

    changed: dict[str, tuple[Any, Any]]
    """Keys of the configuration that differ now, with (old, new); all of a kind that may."""
    trained: bool
    """Whether any step was taken."""


class RunFolder:
    """runs/<name>/ of a training job. One process of the job, rank 0, opens and writes it; all may write the status."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: IO[str] | None = None
        self.ours = False
        """Whether this job has it, so that its failure is the run's."""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _lock(self, lock: IO[str], kind: int, say: Callable[[str], object] | None = None) -> None:
        """Take the lock; raises HeldError where another job has it. An earlier try of this job is waited for: its node
        may be lost, and its lock not given back yet."""
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                earlier = bool(own_job()) and holder.endswith(own_job())
                if time.monotonic() - begun > (LEASE_S if earlier else MOMENT_S):
                    raise HeldError(
                        f"{self.path}: another training job is using it ({holder}); wait for it, end it, or "
                        "take another name by --run"
                    ) from error
                if earlier and say is not None:
                    say(f"{self.path}: an earlier try of this job still holds it ({holder}); waiting {LEASE_S:.0f} s")
                    say = None
                time.sleep(MOMENT_S / 5)

    def check_free(self, say: Callable[[str], object] | None = None) -> None:
        """Raise HeldError where another job has the run. For every rank, before it writes anything into the folder.

        say: is told that an earlier try of this job is waited for.
        """
        with suppress(OSError), (self.path / "lock").open() as lock:  # none yet, or `hold` will say why not
            self._lock(lock, fcntl.LOCK_SH, say)

    def holder(self) -> tuple[str, bool]:
        """Who has or had the run, as its lock says, and whether it is held now."""
        path = self.path / "lock"
        if not path.is_file():
            return "", False
        with path.open() as lock:
            said = lock.read().strip()
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return said, True
        return said, False

    def hold(self) -> None:
        """Make the folder and keep it for this process until it ends; raises HeldError where another job has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); set run.folder to a folder that can"
            ) from error
        self._lock(self.lock, fcntl.LOCK_EX)
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}{own_job()}\n")
        self.lock.flush()

    def compare(self, config: Config, deepspeed: Mapping[str, Any]) -> Earlier:
        """What changed since the earlier start of this run, if there was one.

        Raises RunError with the keys that differ where one of them decides what is computed and steps were taken.
        """
        known = self.path / "config.yaml"
        trained = any(self.checkpoints.glob("step-*")) or (self.metrics.is_file() and self.metrics.stat().st_size > 0)
        if not known.is_file() or not trained:
            return Earlier(changed={}, trained=False)
        # A key of which that start knew nothing had what is its default now.
        old = merged([Config().model_dump(), yaml.safe_load(known.read_text())])
        beside = self.path / "deepspeed.json"
        old["deepspeed.json"] = json.loads(beside.read_text()) if beside.is_file() else {}
        changed = differences(old, config.model_dump() | {"deepspeed.json": dict(deepspeed)})
        refused = {key: values for key, values in changed.items() if not may_change(key)}
        if refused:
            lines = "\n".join(f"  {key}: {was!r} -> {now!r}" for key, (was, now) in refused.items())
            raise RunError(
                f"{self.path}: this run was started with other settings:\n{lines}\n"
                "give these keys their old values to go on with it, or start another run by --run NAME"
            )
        return Earlier(changed=changed, trained=True)

    def begin(
        self, config: Config, deepspeed: Mapping[str, Any], plan: Mapping[str, Any], steps: int, checkpoint: Path | None
    ) -> None:
        """Write what this start is made of (config.yaml, deepspeed.json, plan.json), and that it runs."""
        write_whole(self.path / "config.yaml", dump(config).encode())
        write_whole(self.path / "deepspeed.json", (json.dumps(deepspeed, indent=2) + "\n").encode())
        write_whole(self.path / "plan.json", (json.dumps(plan, indent=2) + "\n").encode())
        self.set_status("running", step=step_of(checkpoint), steps=steps, checkpoint=checkpoint)

    def status(self) -> dict[str, Any]:
        """The newest status; empty before the first, and where it is damaged: the next start writes it anew."""
        try:
            known = json.loads((self.path / "status.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def set_status(self, state: State, *, step: int, steps: int, checkpoint: Path | None, reason: str = "") -> None:
        """Replace status.json.

        state: running | preempted | finished | failed.
        step, steps: optimizer steps done, and of the whole run.
        checkpoint: the newest whole one.
        reason: why it is so, for a person.
        """
        values = {
            "state": state,
            "step": step,
            "steps": steps,
            "checkpoint": f"checkpoints/{checkpoint.name}" if checkpoint else None,
            "reason": reason,
        }
        write_whole(self.path / "status.json", (json.dumps(values) + "\n").encode())

    def is_finished(self, checkpoint: Path | None, steps: int, early: str | None = None) -> bool:
        """Whether the run was trained to its end, which was not moved since, and its last checkpoint is whole.

        early: why it ends at that checkpoint, though it has taken fewer steps.
        """
        status = self.status()
        last = steps if early is None else status.get("step", steps)
        return status.get("state") == "finished" and step_of(checkpoint) >= last

    def set_failed(self, reason: str) -> None:
        """Put `failed` and why into the status, keeping its step and checkpoint; the first of several reasons stays."""
        if self.ours and self.status().get("state") != "failed":
            self.set_stopped(reason)

    def set_stopped(self, reason: str) -> None:
        """Put `failed` and why into the status, whatever stood there."""
        path = self.path / "status.json"
        try:
            write_whole(path, (json.dumps(self.status() | {"state": "failed", "reason": reason}) + "\n").encode())
        except OSError as error:
            print(f"{path} cannot be written ({error.strerror}): it does not say that the run failed", flush=True)

    def has_line(self, step: int, kind: str) -> bool:
        """Whether the metrics have a line of this kind for a step."""
        if not self.metrics.is_file():
            return False
        records = map(json.loads, self.metrics.read_text().splitlines())
        return any(record["step"] == step and record["kind"] == kind for record in records)

    def cut_metrics(self, step: int) -> None:
        """Leave in metrics.jsonl the whole lines of steps up to `step`, as they were when that step was saved."""
        cut_lines(self.metrics, step)
