"""The scores of a split: each metric with its interval, beside baselines that never look and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.score.baselines import Baseline, baselines
from train.score.fields import FieldError, FieldValue
from train.score.intervals import FEWEST_GROUPS, RESAMPLES, interval, one_sided_bound, resample, statistic_of
from train.score.metrics import METRICS, Metric, is_scored, row_values

Answers = Mapping[str, FieldValue | None]
MOST_DRAWS, GUESSED_ROWS = 20, 20_000
"""How often a baseline guesses: at most so many times, and of all rows together about so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true of one sample."""

    key: str
    group: str  # samples of one group (a product) are drawn together
    values: dict[str, FieldValue | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; infinite where most answers could not be read."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A baseline, or a control, measured on the same rows."""

    name: str
    answer: FieldValue | None  # a baseline's constant
    score: Estimate
    gain: Estimate  # paired: of the model over this baseline; of this control over the baseline. Positive is better.
    better: bool  # the gain's interval lies above 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric of one field."""

    field: str
    kind: str
    metric: str
    label: str
    higher_is_better: bool
    n: int  # rows with a truth to compare with
    unreadable: int  # of these, answers from which the field could not be read: they count as wrong
    score: Estimate
    baselines: tuple[Rival, ...]  # the first is the one to beat; empty where the training rows have no value
    controls: tuple[Rival, ...]
    models: tuple[Rival, ...] = ()  # other models on the same rows; their gain is this model's over them
    unit: str = "percent"  # or "plain"

    @property
    def beats_baseline(self) -> bool:
        """Whether the model is better than the best constant, by more than chance."""
        return bool(self.baselines) and self.baselines[0].better

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; numbers that are not finite become null."""
        return finite(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """A score, and what it is in each resample."""

    value: float
    replicates: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows one metric is measured on."""

    metric: Metric
    kind: str
    truths: list[FieldValue | None]
    chosen: list[int]
    groups: NDArray[np.int64]
    seed: int

    def measure(self, predicted: Sequence[FieldValue | None]) -> _Measured:
        values = row_values(self.metric, self.kind, self.truths, predicted)
        return _Measured(
            value=statistic_of(values, self.metric.statistic),
            replicates=resample(values, self.groups, self.metric.statistic, RESAMPLES, self.seed),
        )

    def measure_baseline(self, baseline: Baseline) -> _Measured:
        """Of guesses the mean over several draws: one of few rows may be a lucky or an unlucky one."""
        count = len(self.chosen)
        draws = max(1, min(MOST_DRAWS, GUESSED_ROWS // count)) if baseline.among else 1
        found = [self.measure(baseline.answers(count, self.seed + draw)) for draw in range(draws)]
        return _Measured(
            value=float(np.mean([one.value for one in found])),
            replicates=np.mean([one.replicates for one in found], axis=0),
        )

    def estimate(self, measured: _Measured) -> Estimate:
        """A score with its interval; of fewer than FEWEST_GROUPS groups that is all the values it could have."""
        groups, share = int(self.groups.max()) + 1, self.metric.statistic != "median"
        low, high = interval(measured.replicates)
        if share and measured.value in (0.0, 1.0):
            bound = one_sided_bound(groups)
            low, high = (0.0, bound) if measured.value == 0.0 else (1 - bound, 1.0)
        elif groups < FEWEST_GROUPS:
            low, high = 0.0, 1.0 if share else np.inf
        return Estimate(value=measured.value, low=low, high=high)

    def gain(self, measured: _Measured, over: _Measured) -> Estimate:
        """The paired difference, positive where the first is better; nothing is told of fewer than FEWEST_GROUPS."""
        groups = int(self.groups.max()) + 1
        sign = 1 if self.metric.higher_is_better else -1
        # Two scores that are both infinite differ in nothing that can be shown.
        with np.errstate(invalid="ignore"):
            value, replicates = measured.value - over.value, measured.replicates - over.replicates
        value = 0.0 if np.isnan(value) else sign * value + 0.0  # no −0
        low, high = interval(np.nan_to_num(sign * replicates, nan=0.0, posinf=np.inf, neginf=-np.inf) + 0.0)
        if groups < FEWEST_GROUPS:
            low, high = -np.inf, np.inf
        elif self.metric.statistic == "mean" and low == high and value:
            # All groups gain alike, which a bootstrap takes for certain: as many others may gain −1 or +1 as a share
            # can be that was seen in none of them.
            bound = one_sided_bound(groups)
            low, high = value - bound * (1 + value), value + bound * (1 - value)
        return Estimate(value=value, low=low, high=high)

    def rival(self, name: str, answer: FieldValue | None, theirs: _Measured, gain: Estimate) -> Rival:
        return Rival(name=name, answer=answer, score=self.estimate(theirs), gain=gain, better=gain.low > 0)


def score_split(
    fields: Mapping[str, str],
    truths: Sequence[Truth],
    answers: Sequence[Answers],
    training: Sequence[Answers],
    controls: Mapping[str, Sequence[Answers]] | None = None,
    models: Mapping[str, Sequence[Answers]] | None = None,
    seed: int = 0,
) -> list[Score]:
    """Score a model's answers field by field.

    Args:
        fields: {name: kind}, as in the manifest.
        truths: one a sample.
        answers: what the model said of each sample, in the same order.
        training: the true values of the training rows, from which the baselines' constants are chosen.
        controls: {"shuffled": what the model said of each sample when it saw another sample's picture}.
        models: {"base model": what another model said of each sample}.
        seed: of the bootstrap.

    Raises:
        FieldError: no row has a value of any field.
    """
    scores = []
    for field, kind in fields.items():
        for metric in METRICS[kind]:
            rows = rows_of(metric, field, kind, truths, seed)
            if rows is not None:
                scores.append(_score(field, rows, answers, training, controls or {}, models or {}))
    if not scores:
        raise FieldError(
            f"none of the {len(truths)} samples has a value of {', '.join(fields)}: there is nothing to score"
        )
    return scores


def rows_of(metric: Metric, field: str, kind: str, truths: Sequence[Truth], seed: int = 0) -> Rows | None:
    """The rows that a metric of a field is measured on; None where there are none."""
    chosen = [row for row, truth in enumerate(truths) if is_scored(metric, truth.values[field])]
    if not chosen:
        return None
    codes: dict[str, int] = {}
    groups = [codes.setdefault(truths[row].group, len(codes)) for row in chosen]
    return Rows(
        metric=metric,
        kind=kind,
        truths=[truths[row].values[field] for row in chosen],
        chosen=chosen,
        groups=np.array(groups, np.int64),
        seed=seed,
    )


def _score(
    field: str,
    rows: Rows,
    answers: Sequence[Answers],
    training: Sequence[Answers],
    controls: Mapping[str, Sequence[Answers]],
    models: Mapping[str, Sequence[Answers]],
) -> Score:
    predicted = [answers[row].get(field) for row in rows.chosen]
    measured = rows.measure(predicted)
    known = [value for row in training if (value := row.get(field)) is not None]
    constants = baselines(rows.metric, field, rows.kind, known)
    theirs = [rows.measure_baseline(constant) for constant in constants]
    rivals = [
        rows.rival(constant.name, constant.value, their, rows.gain(measured, over=their))
        for constant, their in zip(constants, theirs, strict=True)
    ]
    checks = []
    for name, control in controls.items() if constants else ():
        found = rows.measure([control[row].get(field) for row in rows.chosen])
        checks.append(rows.rival(name, None, found, rows.gain(found, over=theirs[0])))
    others = []
    for name, model in models.items():
        found = rows.measure([model[row].get(field) for row in rows.chosen])
        others.append(rows.rival(name, None, found, rows.gain(measured, over=found)))
    return Score(
        field=field,
        kind=rows.kind,
        metric=rows.metric.key,
        label=f"{field}: {rows.metric.label}",
        unit=rows.metric.unit,
        higher_is_better=rows.metric.higher_is_better,
        n=len(rows.chosen),
        unreadable=sum(value is None for value in predicted),
        score=rows.estimate(measured),
        baselines=tuple(rivals),
        controls=tuple(checks),
        models=tuple(others),
    )


def percent(value: float) -> str:
    """A fraction as people read it: "93.4 %"; an infinite error as "∞"."""
    return f"{100 * value:.1f} %" if np.isfinite(value) else "∞"


def shown(value: float, unit: str) -> str:
    """A score as people read it: a fraction as per cent, a plain number with three digits."""
    if unit == "percent" or not np.isfinite(value):
        return percent(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def points(value: float, unit: str = "percent") -> str:
    """A difference with its sign: of two fractions in percentage points, "+12.5", else a plain number."""
    if not np.isfinite(value):
        return "+∞" if value > 0 else "−∞"
    text = f"{100 * value:+.1f}" if unit == "percent" else f"{value:+.3g}"
    return text.replace("-", "−") if float(text) else text.replace("-", "+")


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
