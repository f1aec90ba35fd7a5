"""When a run ends: its last step, which the schedule leads to, and what may end it before. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from train.config_schema import StopSection
from train.pipeline.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The last step of a run."""

    steps: int
    rule: str
    """The setting that it follows from, with its value."""


def last_step(plan: Plan, stop: StopSection) -> End:
    """The step that the first of `stop.epochs`, `stop.steps` and `stop.tokens` leads to."""
    ends = [End(steps=stop.steps, rule=f"stop.steps = {stop.steps}")] if stop.steps is not None else []
    if stop.epochs is not None:
        whole = math.floor(stop.epochs)
        part = math.ceil((stop.epochs - whole) * plan.steps_in(whole)) if stop.epochs > whole else 0
        ends.append(End(steps=plan.steps_until(whole) + part, rule=f"stop.epochs = {stop.epochs:g}"))
    if stop.tokens is not None:
        most = min((end.steps for end in ends), default=None)
        ends.append(End(steps=steps_of_tokens(plan, stop.tokens, most), rule=f"stop.tokens = {stop.tokens}"))
    return min(ends, key=lambda end: end.steps)


def steps_of_tokens(plan: Plan, tokens: int, most: int | None = None) -> int:
    """Steps until the plan's packs have held so many tokens, or `most` where that comes first."""
    done = epoch = 0
    while most is None or plan.steps_until(epoch) < most:
        if plan.spec.last_batch == "short":  # then an epoch has all its samples and no other
            whole = int(plan.lengths.tokens @ plan.times_trained(epoch).astype("int64"))
            if done + whole < tokens:
                done, epoch = done + whole, epoch + 1
                continue
        for step in range(plan.steps_until(epoch), plan.steps_until(epoch + 1)):
            done += sum(pack.tokens for pack in plan.batch(step).packs)
            if done >= tokens:
                return step + 1
        epoch += 1
    return most


class Stopping:
    """What may end a run before its last step. Every rank has one and tells it the same, so all end together."""

    def __init__(self, settings: StopSection, state: Mapping[str, float | None] | None = None) -> None:
        """
        state: what `state` gave at the save that is gone on from.
        """
        known = state or {}
        self._settings = settings
        self._before = known.get("seconds") or 0.0
        self._seconds = self._before
        self._best = known.get("best")
        self._without = int(known.get("without") or 0)

    def trained(self, seconds: float) -> None:
        """Seconds since this start of the run began to train, by rank 0's clock."""
        self._seconds = self._before + seconds

    def measured(self, loss: float | None) -> None:
        """A validation loss; None where it was not finite."""
        if loss is not None and (self._best is None or loss < self._best):
            self._best, self._without = loss, 0
        else:
            self._without += 1

    def reason(self) -> str | None:
        """The setting that ends the run now, and why; None where none does."""
        hours, patience = self._settings.hours, self._settings.patience
        if hours is not None and self._seconds >= 3600 * hours:
            return f"stop.hours = {hours:g}: trained for {self._seconds / 3600:.3g} hours"
        if patience is not None and self._without >= patience:
            best = "none was finite" if self._best is None else f"the least is {self._best:.4f}"
            return f"stop.patience = {patience}: {self._without} evaluations without a lower loss, {best}"
        return None

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return {"seconds": self._seconds, "best": self._best, "without": self._without}


def earlier_rules(stop: StopSection) -> str:
    """The settings that may end a run before its last step, in words; empty where there are none."""
    rules = {"stop.hours": stop.hours, "stop.patience": stop.patience}
    return ", ".join(f"{key} = {value:g}" for key, value in rules.items() if value is not None)
