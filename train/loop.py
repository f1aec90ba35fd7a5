"""Training from the first step, or a checkpoint's, to the last: batches in, metrics and checkpoints out."""

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.whole import write_whole
from train.config_schema import Config
from train.console import Console, train_line, validation_line
from train.data_record import DataRecord
from train.distributed import World, marked
from train.engine import Engine
from train.keeping import prune, remove
from train.loss import backward_scale, count_labels, mean_loss
from train.mixture import Mixture
from train.optim import learning_rate, part_scales
from train.pipeline.batch import Batch
from train.pipeline.encode import SECONDS
from train.pipeline.loader import Loader
from train.pipeline.makers import Interrupted
from train.pipeline.plan import Plan
from train.pipeline.verify import step_digest
from train.preemption import Preemption
from train.runs import RunFolder, State, step_of
from train.saving import SaveError, Saver
from train.tracking import Tracker
from train.validation import Validation
from train.waiting import Waiting

GIB = 2**30


def memory_gib(world: World) -> float:
    """The most of the accelerator's memory that was used so far, or this process's memory now."""
    if world.device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(world.device) / GIB
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * 4096 / GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a global batch holds, over all ranks."""

    label_tokens: int
    tokens: int
    pictures: int
    samples: int
    packs: int
    packs_without_labels: int
    """Of `packs`: they contribute nothing."""
    bad: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Counts":
        """Of one rank's share; empty packs count as nothing."""
        full = [batch for batch in batches if batch.keys]
        labels = [count_labels(batch.labels) for batch in full]
        return cls(
            label_tokens=sum(labels),
            tokens=sum(len(batch.input_ids) for batch in full),
            pictures=sum(len(batch.grids) for batch in full),
            samples=sum(len(batch.keys) for batch in full),
            packs=len(full),
            packs_without_labels=labels.count(0),
            bad=sum(len(batch.bad) for batch in batches),
        )


@dataclass(kw_only=True)
class Training:
    """A run in progress. Every rank has one and calls the same methods; files and lines are rank 0's."""

    config: Config
    world: World
    engine: Engine
    plan: Plan
    loader: Loader
    validation: Validation | None
    run: RunFolder
    base: dict[str, str]
    """path and fingerprint of the model trained from."""
    console: Console
    tracker: Tracker | None
    preemption: Preemption
    record: DataRecord
    waiting: Waiting
    mixture: Mixture | None
    """On rank 0."""
    done: int
    """Optimizer steps done."""
    total: int
    checkpoint: Path | None
    """Newest whole one."""
    saved_step: int
    """Newest step whose checkpoint was begun and not given up."""
    saver: Saver
    best: dict[str, Any]
    """Of the checkpoint with the least validation loss: step, checkpoint, loss; empty before the first."""
    owes_validation: bool
    """Whether the step that is gone on from should have been measured and was not."""
    measured: float | None = None
    """Validation loss of the weights as they are, where it was measured and is finite."""
    blocked_s: float = 0.0
    """Seconds that saves have held training up since the last step's line."""
    not_saved: str = ""
    """Why the newest checkpoint that was due is not there."""

    def go(self) -> State:
        """Train to the end, or until asked to leave; returns finished or preempted."""
        self.preemption.listen()
        lines = self.run.metrics.open("a") if self.world.first else None
        self.set_status("running")
        self.console.start_bar(self.done, self.total)
        try:
            # Asked to leave while it measured, a run has a checkpoint of that step and no measurement.
            if self.owes_validation and not self.measure(lines):
                return self.leave()
            while self.done < self.total:
                if not self.train_step(lines):
                    return self.leave()
                self.measured = None
                if self.validation and self.due(self.config.evaluate.every_steps) and not self.measure(lines):
                    return self.leave()
                if self.due(self.config.checkpoint.every_steps):
                    self.save()
            self.settle()
        finally:
            self.console.stop_bar()
            if lines is not None:
                lines.close()
        self.insist()
        self.set_status("finished")
        return "finished"

    def due(self, every: int) -> bool:
        """Whether what happens every so many steps, and at the end, happens now."""
        return self.done == self.total or (every > 0 and self.done % every == 0)

    def next_batches(self) -> tuple[list[Batch], Exception | None]:
        """This rank's share of the next global batch, or why it cannot be had."""
        try:
            step, batches = next(self.loader)
        except Interrupted:
            return [], None  # asked to leave while it waited: the ranks leave together
        except Exception as error:
            return [], error
        assert step == self.done
        return batches, None

    def agree_on_batch(self) -> tuple[list[Batch], Counts] | None:
        """This rank's packs of the next step and what all ranks' hold, or None where a rank was asked to leave."""
        batches, problem = self.next_batches()
        mine = Counts.of(batches)
        values = [getattr(mine, name) for name in Counts.__dataclass_fields__]
        asked = self.preemption.asked is not None
        events = self.loader.latest.events
        *sums, happened, asking, failed, writing = self.world.sum_integers(
            [*values, len(events), int(asked), int(problem is not None), int(self.saver.writing)]
        )
        if failed:
            self.world.raise_together(problem)
        if not writing:
            self.settle()
        if asking:
            return None
        counts = Counts(**dict(zip(Counts.__dataclass_fields__, sums, strict=True)))
        if counts.bad or happened:
            bad = [(batch.number, sample) for batch in batches for sample in batch.bad]
            self.record.add(self.done + 1, "train", bad, events)
        return batches, counts

    def train_step(self, lines: IO[str] | None) -> bool:
        """One optimizer step; False where the ranks were asked to leave instead."""
        begun, blocked = time.perf_counter(), self.blocked_s
        self.blocked_s = 0.0
        agreed = self.agree_on_batch()
        if agreed is None:
            return False
        batches, counts = agreed
        report = self.loader.latest
        own = [report.waited_s, *(report.seconds[name] for name in SECONDS)]
        scale = backward_scale(self.world.size, counts.label_tokens)
        losses = [self.engine.train_pack(batch, self.done, scale) for batch in batches]
        rate = learning_rate(self.done, self.total, self.config.optim)
        norm = self.engine.step(rate)
        gathered = self.world.gather_floats([*own, *(float(loss) for loss in losses)])
        self.done += 1
        loss = mean_loss([values[len(own) :] for values in gathered], counts.label_tokens)
        waited = [values[0] for values in gathered]
        spent = {name: sum(values[place] for values in gathered) for place, name in enumerate(SECONDS, start=1)}
        # What settling a save took in this step is told with the saves.
        seconds = time.perf_counter() - begun - self.blocked_s
        self.blocked_s += blocked
        record = {
            "step": self.done,
            "steps": self.total,
            "kind": "train",
            "epoch": self.plan.locate(self.done - 1)[0],
            "loss": loss if math.isfinite(loss) else None,
            "lr": rate,
            **{f"lr_{part}": rate * scale for part, scale in part_scales(self.config.optim).items()},
            "grad_norm": norm,
            **{name: getattr(counts, name) for name in Counts.__dataclass_fields__},
            "time": {
                "at": time.time(),
                "step_s": seconds,
                "data_wait_s": max(waited),
                "data_wait_rank": waited.index(max(waited)),
                **{f"data_{name}_s": value for name, value in spent.items()},
                "tokens_per_s": counts.tokens / seconds,
                "pictures_per_s": counts.pictures / seconds,
                "memory_gib": memory_gib(self.world),
                "save_s": self.blocked_s,
            },
        }
        self.blocked_s = 0.0
        if self.mixture is not None:
            record |= {"keys": step_digest(self.plan, self.done - 1)} | self.mixture.add(self.done - 1)
        self.write(lines, record)
        warning = self.waiting.add(seconds, waited, spent)
        if warning:
            self.console.say(warning)
        if self.done % self.config.logging.every_steps == 0 or self.done == self.total:
            self.console.say(train_line(record))
        self.console.move_bar(self.done)
        return True

    def measure(self, lines: IO[str] | None) -> bool:
        """Measure the validation loss; False where the ranks were asked to leave instead."""
        assert self.validation is not None
        found = self.validation.measure(
            self.engine, self.world, lambda: self.preemption.asked is not None, self.record, self.done
        )
        if found is None:
            return False
        record = {"step": self.done, "kind": "validation", **found}
        self.write(lines, record)
        self.console.say(validation_line(record))
        self.measured = found["loss"]
        return True

    def write(self, lines: IO[str] | None, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, and the same numbers to W&B."""
        if lines is not None:
            lines.write(json.dumps(record) + "\n")
            lines.flush()
        if self.tracker is not None:
            flat = {f"{record['kind']}/{key}": value for key, value in record.items() if isinstance(value, int | float)}
            times = {f"time/{record['kind']}_{key}": value for key, value in record["time"].items()}
            self.tracker.log(record["step"], flat | times)

    def save(self) -> None:
        """Begin a checkpoint of the weights as they are; written in the background, it counts some steps later."""
        begun = time.perf_counter()
        self.settle()
        try:
            self.saver.begin(
                self.engine.manifest(
                    step=self.done, plan=self.plan.spec.fingerprint(), base=self.base, validation=self.measured
                ),
                self.engine.slices(),
                self.engine.checkpoint_bytes(),
            )
            self.saved_step, self.not_saved = self.done, ""
        except SaveError as error:
            self.give_up_save(error)
        self.blocked_s += time.perf_counter() - begun
        if not self.config.checkpoint.background:
            self.settle()

    def settle(self) -> None:
        """Wait for the save under way, if there is one; it then counts, and those no longer kept are taken away."""
        if not self.saver.under_way:
            return
        begun = time.perf_counter()
        try:
            saved = self.saver.settle()
        except SaveError as error:
            self.give_up_save(error)
            return
        self.checkpoint = saved.folder
        step, loss = saved.manifest.step, saved.manifest.validation_loss
        if loss is not None and loss < self.best.get("loss", math.inf):
            self.best = {"step": step, "checkpoint": f"checkpoints/{saved.folder.name}", "loss": loss}
        if self.world.first:
            write_whole(self.run.path / "best.json", (json.dumps(self.best) + "\n").encode())
            kept = self.config.checkpoint
            gone = prune(self.run.path, kept.keep_last, kept.keep_best, upto=step)
            threading.Thread(target=remove, args=(gone,), name="checkpoint remover").start()
            self.set_status("running")
        self.console.say(
            f"saved {saved.folder} in {saved.seconds:.1f} s, of which training waited {saved.blocked_s:.1f} s"
        )
        self.blocked_s += time.perf_counter() - begun

    def give_up_save(self, error: SaveError) -> None:
        """Train on without a checkpoint that could not be written; the next one that is due is tried again."""
        self.saved_step = step_of(self.checkpoint)
        self.not_saved = str(error)
        self.console.say(f"warning: {error}; training goes on, the newest whole one is {self.checkpoint}")
        self.set_status("running", self.not_saved)

    def insist(self) -> None:
        """Raise SaveError where the checkpoint that the run ends with is not there."""
        if self.not_saved:
            raise marked(
                SaveError(f"{self.not_saved}; make room there, and the same command goes on"), self.world.first
            )

    def leave(self) -> State:
        """Save at the last optimizer step, because a signal asked the job to end."""
        signals = [name for name in self.world.gather_objects(self.preemption.asked) if name]
        reason = f"{signals[0] if signals else 'a signal'} after step {self.done}"
        self.settle()
        if self.done > self.saved_step:
            self.measured = None
            self.save()
            self.settle()
        self.insist()
        self.set_status("preempted", reason)
        self.console.say(f"{reason}: saved {self.checkpoint}; the same command goes on from there")
        return "preempted"

    def set_status(self, state: State, reason: str = "") -> None:
        """Write status.json, on rank 0."""
        if self.world.first:
            self.run.set_status(state, step=self.done, steps=self.total, checkpoint=self.checkpoint, reason=reason)
