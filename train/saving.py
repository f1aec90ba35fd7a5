"""Saves of a running training: copied in one go, written while training goes on, and counted once all is written."""

import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.schema import UserError
from train.checkpoint import KINDS, Manifest, Slice, Written, finish, step_folder, write_slices
from train.distributed import World
from train.heartbeat import WAITING, Heart
from train.keeping import lacking_space

if TYPE_CHECKING:
    import torch


SAVING = "save"


class SaveError(UserError):
    """A checkpoint could not be written; the training itself is as it was."""


class Copies:
    """Memory of this rank for what is being saved: made at the first save and used again at each further one."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], torch.Tensor] = {}

    def take(self, slices: Iterable[Slice]) -> list[Slice]:
        """The same slices in memory of their own, fp32 on the host."""
        return [
            replace(part, tensors={kind: self._copy(part.name, kind, part.tensors[kind]) for kind in KINDS})
            for part in slices
        ]

    def _copy(self, name: str, kind: str, value: "torch.Tensor") -> "torch.Tensor":
        import torch

        kept = self._kept.get((name, kind))
        if kept is None:
            kept = self._kept[name, kind] = torch.empty(value.numel(), dtype=torch.float32)
        return kept.copy_(value)


class Job(threading.Thread):
    """Writes one rank's slices."""

    def __init__(self, write: Callable[[], tuple[str, Written]]) -> None:
        super().__init__(name="checkpoint writer", daemon=True)
        self._write = write
        self.written: tuple[str, Written] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.written = self._write()
        except Exception as error:
            self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A save under way."""

    job: Job
    aside: Path
    manifest: Manifest
    """Without its files."""
    begun: float
    blocked_s: float
    """What copying took, and writing where it is not done in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that is whole."""

    folder: Path
    manifest: Manifest
    seconds: float
    """From its beginning until it counted."""
    blocked_s: float
    """Of these, what the training waited."""


class Saver:
    """Writes a run's checkpoints, one at a time. Every rank has one; `begin` and `settle` are collective."""

    def __init__(self, folder: Path, world: World, *, background: bool, heart: Heart) -> None:
        """
        folder: of the run's checkpoints.
        background: write from a copy in memory while training goes on.
        heart: told when a save begins, is waited for, and whenever a piece has been written.
        """
        self._folder = folder
        self._world = world
        self._copies = Copies() if background else None
        self._heart = heart
        self._pending: Pending | None = None

    @property
    def under_way(self) -> bool:
        """Whether there is a save to settle; the same on all ranks."""
        return self._pending is not None

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing."""
        return self._pending is not None and self._pending.job.is_alive()

    def begin(self, manifest: Manifest, slices: Iterable[Slice], needed: int) -> None:
        """Copy what this rank holds and start to write it.

        manifest: of what is saved, without its files. slices: what this rank holds.
        needed: bytes of the whole checkpoint.
        Raises SaveError, on every rank, where the disk has no room or refuses the folder.
        """
        begun = time.perf_counter()
        self._heart.mark(SAVING)
        world, aside = self._world, self._folder / f".{step_folder(manifest.step)}.tmp"

        def make_room() -> str | None:
            try:
                aside.mkdir(parents=True, exist_ok=True)
                return lacking_space(aside, needed)
            except OSError as error:
                return f"{aside}: {error.strerror}"

        problem = world.from_first(make_room)
        if problem:
            self._abandon(aside)
            raise SaveError(f"the checkpoint of step {manifest.step} is not written: {problem}")
        held = self._copies.take(slices) if self._copies else list(slices)
        job = Job(lambda: write_slices(aside, world.rank, held, lambda: self._heart.alive(SAVING)))
        job.start()
        if not self._copies:
            job.join()
        self._pending = Pending(
            job=job, aside=aside, manifest=manifest, begun=begun, blocked_s=time.perf_counter() - begun
        )

    def settle(self) -> Saved:
        """Wait until every rank has written its slices, and make them a checkpoint.

        Raises SaveError, on every rank, where the disk did not take all of them; any other error of a writer as it is.
        """
        assert self._pending is not None
        begun = time.perf_counter()
        pending, self._pending = self._pending, None
        self._heart.mark(SAVING)
        pending.job.join()
        self._heart.mark(WAITING)
        outcomes = self._world.gather_objects((pending.job.written, pending.job.error))
        failed = next(((rank, error) for rank, (_, error) in enumerate(outcomes) if error is not None), None)
        step = pending.manifest.step
        if failed is not None:
            rank, error = failed
            if not isinstance(error, OSError):
                raise error
            self._abandon(pending.aside)
            raise SaveError(f"the checkpoint of step {step} is not written: rank {rank}: {error}") from error
        manifest = replace(pending.manifest, files=dict(written for written, _ in outcomes))

        def commit() -> Path | str:
            try:
                return finish(pending.aside, manifest)
            except OSError as error:
                return f"{pending.aside}: {error.strerror}"

        folder = self._world.from_first(commit)
        if isinstance(folder, str):
            self._abandon(pending.aside)
            raise SaveError(f"the checkpoint of step {step} is not written: {folder}")
        now = time.perf_counter()
        return Saved(
            folder=folder,
            manifest=manifest,
            seconds=now - pending.begun,
            blocked_s=pending.blocked_s + now - begun,
        )

    def _abandon(self, aside: Path) -> None:
        """Give back what an unfinished checkpoint takes of the disk."""
        if self._world.first:
            shutil.rmtree(aside, ignore_errors=True)
