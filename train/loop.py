"""Training from the first step, or a checkpoint's, to the last: batches in, metrics and checkpoints out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from data.schema import UserError
from train.asking import Asking
from train.checkpointing import Checkpoints
from train.config_schema import Config
from train.console import Console, train_line, validation_line
from train.data_record import DataRecord
from train.distributed import World, marked
from train.engine import Engine
from train.faults import Skips, explain_memory, is_out_of_memory
from train.flops import Arithmetic
from train.heartbeat import WAITING, Heart
from train.loss import backward_scale, mean_loss
from train.mixture import Mixture
from train.optim import learning_rate, part_scales
from train.pipeline.batch import Batch
from train.pipeline.encode import SECONDS
from train.pipeline.loader import Loader
from train.pipeline.makers import Interrupted
from train.pipeline.plan import Plan
from train.pipeline.verify import step_digest
from train.preemption import Preemption
from train.reporting import Report
from train.runs import State
from train.step_record import Counts, Outcome, memory_gib, step_line
from train.stopping import End, Stopping
from train.tracing import Trace
from train.validation import Validation
from train.waiting import Waiting


@dataclass(kw_only=True)
class Training:
    """A run in progress. Every rank has one and calls the same methods; files and lines are rank 0's."""

    config: Config
    world: World
    engine: Engine
    plan: Plan
    loader: Loader
    validation: Validation | None
    asking: Asking | None
    """What the model is asked where the validation loss is measured."""
    console: Console
    report: Report
    preemption: Preemption
    heart: Heart
    record: DataRecord
    skips: Skips
    waiting: Waiting
    trace: Trace
    mixture: Mixture | None
    """On rank 0."""
    arithmetic: Arithmetic
    peak_flops: float | None
    """Operations a second of all ranks' devices; None where it is not known."""
    checkpoints: Checkpoints
    done: int
    """Optimizer steps done."""
    end: End
    stopping: Stopping
    owes_validation: bool
    """Whether the step that is gone on from should have been measured and was not."""
    measured: float | None = None
    """Validation loss of the weights as they are, where it was measured and is finite."""
    begun: float = 0.0
    """When `go` was called."""

    def go(self) -> State:
        """Train to the end, or until asked to leave; returns finished or preempted."""
        self.begun = time.perf_counter()
        self.preemption.listen()
        self.heart.start()
        self.checkpoints.changed = lambda reason: self.set_status("running", reason)
        self.set_status("running")
        self.console.start_bar(self.done, self.end.steps)
        try:
            # Asked to leave while it measured, a run has a checkpoint of that step and no measurement.
            if self.owes_validation and not self.measure():
                return self.leave()
            while not self.ending:
                if not self.train_step():
                    return self.leave()
                self.measured = None
                if self.validation and self.due(self.config.evaluate.every_steps) and not self.measure():
                    return self.leave()
                if self.due(self.config.checkpoint.every_steps):
                    self.checkpoints.save(self.done, self.measured, self.stopping.state())
            self.checkpoints.settle()
            self.checkpoints.insist()
        finally:
            self.heart.stop()
            if traced := self.trace.finish():
                self.report.say(traced)
            self.console.stop_bar()
            self.report.close()
        self.set_status("finished", self.stopping.reason() or self.end.rule)
        return "finished"

    @property
    def ending(self) -> bool:
        """Whether the step that is done is the last."""
        return self.done >= self.end.steps or self.stopping.reason() is not None

    def due(self, every: int) -> bool:
        """Whether what happens every so many steps, and at the end, happens now."""
        return self.ending or (every > 0 and self.done % every == 0)

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
        self.heart.mark("data", self.done + 1)
        batches, problem = self.next_batches()
        mine = Counts.of(batches, self.arithmetic.of_packs(batches))
        values = [getattr(mine, name) for name in Counts.__dataclass_fields__]
        asked = self.preemption.asked is not None
        events = self.loader.latest.events
        self.heart.mark(WAITING)
        *sums, happened, asking, failed, writing = self.world.sum_integers(
            [*values, len(events), int(asked), int(problem is not None), int(self.checkpoints.saver.writing)]
        )
        if failed or not writing:
            self.checkpoints.settle()
        if failed:
            self.world.raise_together(problem)
        if asking:
            return None
        counts = Counts(**dict(zip(Counts.__dataclass_fields__, sums, strict=True)))
        if counts.bad or happened:
            bad = [(batch.number, sample) for batch in batches for sample in batch.bad]
            self.record.add(self.done + 1, "train", bad, events)
        return batches, counts

    def forward_backward(self, batches: Sequence[Batch], labels: int) -> list[float]:
        """This rank's packs one after the other; returns the summed loss of each."""
        scale = backward_scale(self.world.size, labels)
        losses = []
        for batch in batches:
            try:
                losses.append(self.engine.train_pack(batch, self.done, scale, self.heart.mark))
            except Exception as error:
                if is_out_of_memory(error):
                    raise self.memory_error(error, batch) from error
                raise
        return [float(loss) for loss in losses]

    def update(self, rate: float) -> float | None:
        """The optimizer's step; the gradient's norm, None where all ranks skipped it."""
        self.heart.mark("step")
        try:
            return self.engine.step(rate)
        except Exception as error:
            if is_out_of_memory(error):
                raise self.memory_error(error, None) from error
            raise

    def memory_error(self, error: Exception, batch: Batch | None) -> UserError:
        """What to tell where memory ran out, by the rank where it did."""
        doing = "forward or backward" if batch is not None else "the optimizer's update"
        return marked(explain_memory(error, batch, self.config, f"{doing} of step {self.done + 1}"), True)

    def train_step(self) -> bool:
        """One optimizer step; False where the ranks were asked to leave instead."""
        held_up = self.checkpoints.take_blocked()
        self.trace.before(self.done + 1)
        begun = time.perf_counter()
        agreed = self.agree_on_batch()
        if agreed is None:
            return False
        batches, counts = agreed
        settled = self.checkpoints.take_blocked()
        at_work = time.perf_counter()
        losses = self.forward_backward(batches, counts.label_tokens)
        computed = time.perf_counter() - at_work
        rate = learning_rate(self.done, self.end.steps, self.config.optim)
        scale, may_fall = self.engine.loss_scale.value, self.engine.loss_scale.may_fall
        norm = self.update(rate)
        self.heart.mark(WAITING)
        report = self.loader.latest
        own = [report.waited_s, computed, time.perf_counter() - self.begun, *(report.seconds[name] for name in SECONDS)]
        gathered = self.world.gather_floats([*own, *losses])
        self.done += 1
        spent = {name: sum(values[place] for values in gathered) for place, name in enumerate(SECONDS, start=3)}
        self.stopping.trained(gathered[0][2])
        loss = mean_loss([values[len(own) :] for values in gathered], counts.label_tokens)
        outcome = Outcome(
            loss=loss,
            rate=rate,
            rates={part: rate * scale for part, scale in part_scales(self.config.optim).items()},
            norm=norm,
            # What settling a save took within this step is told with the saves.
            seconds=time.perf_counter() - begun - settled,
            save_s=held_up + settled,
            waited=[values[0] for values in gathered],
            computed=[values[1] for values in gathered],
            spent=spent,
            memory_gib=memory_gib(self.world),
            peak_flops=self.peak_flops,
            loss_scale=scale,
            overflow=norm is None and may_fall and math.isfinite(loss),
        )
        self.tell(counts, outcome)
        if outcome.overflow:
            self.report.say(
                f"step {self.done} is skipped: its gradient overflowed at a loss scale of {scale:g}; the next step's "
                f"is {self.engine.loss_scale.value:g}"
            )
        elif norm is None:
            self.checkpoints.settle()  # the run may end here, and names its newest whole one
            self.report.say(f"warning: {self.skips.add(self.done, batches, losses, self.checkpoints.newest)}")
        else:
            self.skips.applied()
        return True

    def tell(self, counts: Counts, outcome: Outcome) -> None:
        """A step's line in the metrics, on the console, and what is to be said about it."""
        record = step_line(self.done, self.end.steps, self.plan.locate(self.done - 1)[0], counts, outcome)
        if self.mixture is not None:
            record |= {"keys": step_digest(self.plan, self.done - 1)} | self.mixture.add(self.done - 1)
        self.report.line(record)
        warning = self.waiting.add(outcome.seconds, outcome.waited, outcome.spent)
        if warning:
            self.report.say(warning)
        if self.done % self.config.logging.every_steps == 0 or self.ending:
            self.report.say(train_line(record))
        traced = self.trace.after(self.done)
        if traced:
            self.report.say(traced)
        self.console.move_bar(self.done)

    def measure(self) -> bool:
        """Measure the validation loss; False where the ranks were asked to leave instead."""
        assert self.validation is not None
        found = self.validation.measure(
            self.engine, self.world, lambda: self.preemption.asked is not None, self.record, self.done, self.heart
        )
        if found is None:
            return False
        record = {"step": self.done, "kind": "validation", **found}
        if self.asking is not None:
            answers = self.asking.ask(lambda: self.preemption.asked is not None, self.heart)
            if answers is None:
                return False
            record["time"]["answers_s"] = answers.seconds
            record["answers"] = answers.numbers
            self.report.answers(self.done, answers)
        self.report.line(record)
        self.report.say(validation_line(record))
        self.measured = found["loss"]
        self.stopping.measured(self.measured)
        return True

    def leave(self) -> State:
        """Save at the last optimizer step, because a signal asked the job to end."""
        signals = [name for name in self.world.gather_objects(self.preemption.asked) if name]
        reason = f"{signals[0] if signals else 'a signal'} after step {self.done}"
        if self.done > self.checkpoints.begun:
            self.checkpoints.save(self.done, None, self.stopping.state())
        self.checkpoints.settle()
        self.checkpoints.insist()
        self.set_status("preempted", reason)
        self.report.say(f"{reason}: saved {self.checkpoints.newest}; the same command goes on from there")
        return "preempted"

    def set_status(self, state: State, reason: str = "") -> None:
        """Write status.json, on rank 0."""
        self.report.status(
            state, step=self.done, steps=self.end.steps, checkpoint=self.checkpoints.newest, reason=reason
        )
