"""What changed since an earlier record: figure by figure, and only where the two can be compared."""

from dataclasses import dataclass
from typing import Any

from tests.benchmarks.bench.runs import Record
from tests.benchmarks.figures import Figure

SAME, BETTER, WORSE = "same", "better", "worse"
ALIKE, ALIKE_IN_ROUNDS = 1e-3, 1e-2
"""Relative: counted figures, and those of rounds, are the same where they are nearer than that."""
MACHINE = ("cpu", "cores", "memory_gib", "gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure then and now."""

    benchmark: str
    name: str
    unit: str
    old: float
    new: float
    better_by: float
    """How many times as good as it was: below 1 it got worse."""
    verdict: str
    """same, better or worse, with what else is to be known; or why nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that can be held against an earlier record."""

    notes: tuple[str, ...]
    """What differs beside the figures: machine, versions, what was not found in both."""
    changes: tuple[Change, ...]

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got worse by more than the rounds differ among themselves."""
        return tuple(change for change in self.changes if change.verdict.startswith(WORSE))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two sets of properties, as `name: old → new`."""
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name}: {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names if old.get(name) != new.get(name)
    ]


def compare(old: Record, new: Record) -> Comparison:
    """Hold a record against an earlier one.

    Nothing is called better or worse between machines that differ, or for a benchmark with other arguments; where
    versions differ that stands in the notes.
    """
    other_machine = differences(*({name: one.machine.get(name) for name in MACHINE} for one in (old, new)))
    notes = []
    if other_machine:
        notes.append(f"Not the same machine, so nothing is called better or worse. {'; '.join(other_machine)}")
    kernels = differences({"kernel": old.machine.get("kernel")}, {"kernel": new.machine.get("kernel")})
    if other_versions := [*differences(old.versions, new.versions), *kernels]:
        notes.append(f"Versions differ, and any difference may be theirs. {'; '.join(other_versions)}")
    before = {outcome.name: outcome for outcome in old.benchmarks}
    changes, missing = [], []
    for outcome in new.benchmarks:
        earlier = before.get(outcome.name)
        if earlier is None or not earlier.figures:
            missing.append(outcome.name)
            continue
        figures = {figure.name: figure for figure in earlier.figures}
        busy = earlier.busy or outcome.busy
        refusal = "another machine" if other_machine else None
        if earlier.arguments != outcome.arguments:
            refusal = "other arguments"
        for figure in outcome.figures:
            if figure.name in figures and figures[figure.name].unit == figure.unit:
                changes.append(_change(outcome.name, figures[figure.name], figure, refusal, busy))
            else:
                missing.append(f"{outcome.name}: {figure.name}")
    if missing:
        notes.append(f"Not in the earlier file: {'; '.join(missing)}")
    return Comparison(notes=tuple(notes), changes=tuple(changes))


def _change(benchmark: str, old: Figure, new: Figure, refusal: str | None, busy: bool) -> Change:
    better_by = _times(new.value, old.value, new.higher_is_better)
    return Change(
        benchmark=benchmark,
        name=new.name,
        unit=new.unit,
        old=old.value,
        new=new.value,
        better_by=better_by,
        verdict=refusal or _verdict(old, new, busy),
    )


def _times(new: float, old: float, higher_is_better: bool) -> float:
    over, under = (new, old) if higher_is_better else (old, new)
    return over / under if under else 1.0 if over == under else float("inf")


def _verdict(old: Figure, new: Figure, busy: bool) -> str:
    """Beyond both spreads it is a change; where the ratio to the baseline did not change, the machine may be why."""
    found = _beyond_rounds(old, new)
    timed = old.spread is not None or new.spread is not None
    return f"{found}, on a busy machine" if busy and timed and found != SAME else found


def _beyond_rounds(old: Figure, new: Figure) -> str:
    own = _apart(old.spread, new.spread, old.value, new.value, new.higher_is_better)
    if own == SAME or not (old.baseline and new.baseline and new.spread):
        return own
    beside = _apart(
        old.baseline.spread, new.baseline.spread, old.baseline.ratio, new.baseline.ratio, higher_is_better=True
    )
    return own if beside == own else f"{own}, and so is its baseline"


def _apart(
    old_spread: tuple[float, float] | None,
    new_spread: tuple[float, float] | None,
    old: float,
    new: float,
    higher_is_better: bool,
) -> str:
    (old_low, old_high), (new_low, new_high) = old_spread or (old, old), new_spread or (new, new)
    counted = old_spread is None and new_spread is None
    if abs(new - old) <= (ALIKE if counted else ALIKE_IN_ROUNDS) * abs(old):
        return SAME
    if new_low <= old_high and old_low <= new_high:
        return SAME
    return BETTER if (new > old) == higher_is_better else WORSE
