"""The scores of a split: each metric with its interval, beside baselines that never look and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.score.baselines import baselines
from train.score.fields import FieldError, FieldValue
from train.score.intervals import RESAMPLES, interval, one_sided_bound, resample, statistic_of
from train.score.metrics import METRICS, Metric, is_scored, row_values

Answers = Mapping[str, FieldValue | None]


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

    @property
    def beats_baseline(self) -> bool:
        """Whether the model is better than the best constant, by more than chance."""
        return bool(self.baselines) and self.baselines[0].better

    def to_json(self) -> dict[str, Any]:
        """A JSON-able record; numbers that are not finite become null."""
        return _finite(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows one metric is measured on."""

    metric: Metric
    kind: str
    truths: list[FieldValue | None]
    chosen: list[int]
    groups: NDArray[np.int64]
    seed: int

    def values(self, predicted: Sequence[FieldValue | None]) -> NDArray[np.float64]:
        return row_values(self.metric, self.kind, self.truths, predicted)

    def replicates(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return resample(values, self.groups, self.metric.statistic, RESAMPLES, self.seed)

    def estimate(self, values: NDArray[np.float64]) -> Estimate:
        value = statistic_of(values, self.metric.statistic)
        low, high = interval(self.replicates(values))
        if self.metric.statistic == "mean" and value in (0.0, 1.0):
            bound = one_sided_bound(int(self.groups.max()) + 1)
            low, high = (0.0, bound) if value == 0.0 else (1 - bound, 1.0)
        return Estimate(value=value, low=low, high=high)

    def gain(self, values: NDArray[np.float64], over: NDArray[np.float64]) -> Estimate:
        sign = 1 if self.metric.higher_is_better else -1
        value = statistic_of(values, self.metric.statistic) - statistic_of(over, self.metric.statistic)
        low, high = interval(sign * (self.replicates(values) - self.replicates(over)))
        return Estimate(value=sign * value, low=low, high=high)


def score_split(
    fields: Mapping[str, str],
    truths: Sequence[Truth],
    answers: Sequence[Answers],
    training: Sequence[Answers],
    controls: Mapping[str, Sequence[Answers]] | None = None,
    seed: int = 0,
) -> list[Score]:
    """Score a model's answers field by field.

    Args:
        fields: {name: kind}, as in the manifest.
        truths: one a sample.
        answers: what the model said of each sample, in the same order.
        training: the true values of the training rows, from which the baselines' constants are chosen.
        controls: {"shuffled": what the model said of each sample when it saw another sample's picture}.
        seed: of the bootstrap.

    Raises:
        FieldError: no row has a value of any field.
    """
    codes = {group: code for code, group in enumerate(dict.fromkeys(truth.group for truth in truths))}
    scores = []
    for field, kind in fields.items():
        for metric in METRICS[kind]:
            chosen = [row for row, truth in enumerate(truths) if is_scored(metric, truth.values[field])]
            if chosen:
                _, groups = np.unique([codes[truths[row].group] for row in chosen], return_inverse=True)
                rows = _Rows(
                    metric=metric,
                    kind=kind,
                    truths=[truths[row].values[field] for row in chosen],
                    chosen=chosen,
                    groups=groups.astype(np.int64),
                    seed=seed,
                )
                scores.append(_score(field, rows, answers, training, controls or {}))
    if not scores:
        raise FieldError(
            f"none of the {len(truths)} samples has a value of {', '.join(fields)}: there is nothing to score"
        )
    return scores


def _score(
    field: str,
    rows: _Rows,
    answers: Sequence[Answers],
    training: Sequence[Answers],
    controls: Mapping[str, Sequence[Answers]],
) -> Score:
    predicted = [answers[row].get(field) for row in rows.chosen]
    values = rows.values(predicted)
    known = [value for row in training if (value := row.get(field)) is not None]
    constants = baselines(rows.metric, field, rows.kind, known)
    constant_values = [rows.values([constant.value] * len(rows.chosen)) for constant in constants]
    rivals = []
    for constant, theirs in zip(constants, constant_values, strict=True):
        gain = rows.gain(values, over=theirs)
        rivals.append(
            Rival(
                name=constant.name,
                answer=constant.value,
                score=rows.estimate(theirs),
                gain=gain,
                better=gain.low > 0,
            )
        )
    checks = []
    for name, control in controls.items() if constants else ():
        theirs = rows.values([control[row].get(field) for row in rows.chosen])
        gain = rows.gain(theirs, over=constant_values[0])
        checks.append(Rival(name=name, answer=None, score=rows.estimate(theirs), gain=gain, better=gain.low > 0))
    return Score(
        field=field,
        kind=rows.kind,
        metric=rows.metric.key,
        label=f"{field}: {rows.metric.label}",
        higher_is_better=rows.metric.higher_is_better,
        n=len(rows.chosen),
        unreadable=sum(value is None for value in predicted),
        score=rows.estimate(values),
        baselines=tuple(rivals),
        controls=tuple(checks),
    )


def percent(value: float) -> str:
    """A fraction as people read it: "93.4 %"; an infinite error as "∞"."""
    return f"{100 * value:.1f} %" if np.isfinite(value) else "∞"


def points(value: float) -> str:
    """A difference of two fractions in percentage points, with its sign: "+12.5"."""
    if not np.isfinite(value):
        return "+∞" if value > 0 else "−∞"
    return f"{100 * value:+.1f}".replace("-", "−")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
