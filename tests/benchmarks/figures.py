"""What a benchmark found: figures, each beside its baseline of the same run and beside the physical limit.

A benchmark is a module of this folder with `parser()`, its command line, and `measure(options)`, which prints a table
and returns these figures; `command` makes the module's own command of them, `tests.benchmarks.bench` collects them all.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from data.schema import UserError

UNAVAILABLE, MISSED = 2, 1


class Unavailable(Exception):
    """A benchmark cannot run on this machine; the text says what it lacks, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a figure is held against, measured in the same run and in the figure's unit."""

    name: str
    value: float
    ratio: float
    """How many times as good the figure is: 2 stands for twice the rate, and for half the time or memory."""
    spread: tuple[float, float] | None = None
    """Least and most of the rounds' ratios; None: it is not a matter of rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure."""

    name: str
    """What was measured on what; within its benchmark no other figure has it, and other inputs have another name."""
    value: float
    """Of the middle round."""
    unit: str
    higher_is_better: bool = True
    spread: tuple[float, float] | None = None
    """Least and most of the rounds; None: it is counted, not timed, and the same each time."""
    baseline: Beside | None = None
    """What people would use instead."""
    limit: Beside | None = None
    """What nothing could beat on this machine; the ratio is the share of it that is reached."""
    asked: str | None = None
    """The bound it is held to, in words."""
    holds: bool | None = None
    """Whether it keeps to the bound; None: nothing is asked."""

    def asking(self, asked: str, holds: bool) -> Self:
        """The same figure with a bound."""
        return replace(self, asked=asked, holds=bool(holds))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave, also after it went through a file."""
        given = dict(values)
        for name in ("baseline", "limit"):
            if given[name]:
                given[name] = Beside(**given[name] | {"spread": _pair(given[name]["spread"])})
        return cls(**given | {"spread": _pair(given["spread"])})


def _pair(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (ends[0], ends[1])


def of_rounds(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    higher_is_better: bool = True,
    baseline: tuple[str, Sequence[float]] | None = None,
    limit: tuple[str, Sequence[float]] | None = None,
) -> Figure:
    """A figure from its rounds.

    values: one a round. baseline, limit: their name and their values, in the same rounds.
    """

    def beside(other: tuple[str, Sequence[float]]) -> Beside:
        ratios = [a / b if higher_is_better else b / a for a, b in zip(values, other[1], strict=True)]
        return Beside(
            name=other[0],
            value=statistics.median(other[1]),
            ratio=statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
        )

    return Figure(
        name=name,
        value=statistics.median(values),
        unit=unit,
        higher_is_better=higher_is_better,
        spread=(min(values), max(values)),
        baseline=beside(baseline) if baseline else None,
        limit=beside(limit) if limit else None,
    )


def counted(name: str, value: float, other: float, higher_is_better: bool = True) -> Beside:
    """What a figure of `value` is held against where nothing is timed."""
    return Beside(name=name, value=other, ratio=value / other if higher_is_better else other / value)


def command(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], list[Figure]],
    arguments: Sequence[str] | None = None,
) -> int:
    """A benchmark's own command; returns 0, 1 if a bound is missed, 2 if it cannot run here."""
    try:
        figures = measure(parser.parse_args(arguments))
    except (Unavailable, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNAVAILABLE
    missed = [figure for figure in figures if figure.holds is False]
    for figure in missed:
        print(f"missed: {figure.name}: {figure.value:,.4g} {figure.unit}, asked: {figure.asked}", file=sys.stderr)
    return MISSED if missed else 0
