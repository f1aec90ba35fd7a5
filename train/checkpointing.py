"""When checkpoints of a run are written, which of them count, and what happens where one cannot be written."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from train.config_schema import CheckpointSection
from train.distributed import World, marked
from train.engine import Engine
from train.keeping import prune, remove, step_of
from train.reporting import Report
from train.saving import SaveError, Saver


@dataclass(kw_only=True)
class Checkpoints:
    """Those of a run in progress. Every rank has one and calls it alike."""

    settings: CheckpointSection
    world: World
    engine: Engine
    saver: Saver
    report: Report
    plan: str
    """Fingerprint of the order of training."""
    base: dict[str, str]
    """path and fingerprint of the model trained from."""
    newest: Path | None
    """Whole one."""
    best: dict[str, Any]
    """Of the checkpoint with the least validation loss: step, checkpoint, loss; empty before the first."""
    changed: Callable[[str], None] = lambda reason: None
    """Called with "" when another one is the newest, or with why one that was due is not there."""
    begun: int = field(init=False)
    """Newest step whose checkpoint was begun and not given up; -1 before the first."""
    blocked_s: float = 0.0
    """Seconds that saves have held training up since `take_blocked`."""
    missing: str = ""
    """Why the newest one that was due is not there."""

    def __post_init__(self) -> None:
        self.begun = step_of(self.newest) if self.newest else -1

    def save(self, step: int, measured: float | None, stopping: dict[str, float | None]) -> None:
        """Begin a checkpoint of the weights as they are; written in the background, it counts some steps later.

        measured: validation loss of these weights. stopping: what is counted towards the run's end.
        """
        start = time.perf_counter()
        self.settle()
        try:
            manifest = self.engine.manifest(step=step, plan=self.plan, base=self.base, validation=measured)
            manifest = replace(manifest, stopping=stopping)
            self.saver.begin(manifest, self.engine.slices(), self.engine.checkpoint_bytes())
            self.begun, self.missing = step, ""
        except SaveError as error:
            self._give_up(error)
        if not self.settings.background:
            self.settle()
        self.blocked_s += time.perf_counter() - start

    def settle(self) -> None:
        """Wait for the save under way, if there is one; it then counts, and those no longer kept are taken away."""
        if not self.saver.under_way:
            return
        start = time.perf_counter()
        try:
            saved = self.saver.settle()
        except SaveError as error:
            self._give_up(error)
            return
        self.newest = saved.folder
        loss = saved.manifest.validation_loss
        if loss is not None and loss < self.best.get("loss", math.inf):
            place = f"checkpoints/{saved.folder.name}"
            self.best = {"step": saved.manifest.step, "checkpoint": place, "loss": loss}
        if self.world.first:
            self.report.best(self.best)
            kept = self.settings
            gone = prune(saved.folder.parents[1], kept.keep_last, kept.keep_best, upto=saved.manifest.step)
            threading.Thread(target=remove, args=(gone,), name="checkpoint remover").start()
        self.changed("")
        self.report.say(
            f"saved {saved.folder} in {saved.seconds:.1f} s, of which training waited {saved.blocked_s:.1f} s"
        )
        self.blocked_s += time.perf_counter() - start

    def _give_up(self, error: SaveError) -> None:
        """Go on without a checkpoint that could not be written; the next one that is due is tried again."""
        self.begun = step_of(self.newest) if self.newest else -1
        self.missing = str(error)
        self.report.say(f"warning: {error}; training goes on, the newest whole one is {self.newest}")
        self.changed(self.missing)

    def insist(self) -> None:
        """Raise SaveError where the checkpoint that the run ends with is not there."""
        if self.missing:
            error = SaveError(f"{self.missing}; see to the disk, and the same command goes on from {self.newest}")
            raise marked(error, self.world.first)

    def take_blocked(self) -> float:
        """Seconds that saves have held training up since the last call."""
        seconds, self.blocked_s = self.blocked_s, 0.0
        return seconds
