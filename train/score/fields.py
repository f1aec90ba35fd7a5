"""Answers as typed fields: what an answer says, and what the truth is, read by the manifest's answer template."""

import json
import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.schema import UserError
from data.whole import whole_file

FieldValue = str | float
KINDS = ("text", "category", "number")
WHOLE_ANSWER = "answer"  # the one field of data that names none: the answer as it stands

_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?")


class FieldError(UserError):
    """The manifest's fields or answer template cannot be scored."""


class PredictionError(UserError):
    """A predictions file that cannot be read, or that is of other samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model answered for one sample."""

    key: str
    answer: str
    fields: dict[str, FieldValue | None]  # what the answer says of each field; None where it cannot be read
    logprob: float  # natural log; the sum over the chosen tokens, the stop token included
    problem: str = ""  # why the model could not be asked; the answer is then empty

    def to_json(self) -> str:
        """One line of predictions.jsonl, without its newline."""
        record = {"key": self.key, "answer": self.answer, "fields": self.fields, "logprob": round(self.logprob, 4)}
        if self.problem:
            record["problem"] = self.problem
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Prediction":
        """The prediction of one line; raises ValueError or KeyError for a line that is none."""
        record = json.loads(line)
        return cls(
            key=record["key"],
            answer=record["answer"],
            fields=record["fields"],
            logprob=record["logprob"],
            problem=record.get("problem", ""),
        )


def each_prediction(path: Path) -> Iterator[Prediction]:
    """The predictions of a file in its order, one at a time; raises PredictionError naming the line that is none."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Prediction.from_json(line)
            except (ValueError, KeyError, TypeError) as error:
                raise PredictionError(
                    f"{path}: line {number} is not a prediction ({error!r}); predict again to write the file anew"
                ) from error


def read_predictions(path: Path) -> list[Prediction]:
    """All predictions of a file; raises as each_prediction does."""
    return list(each_prediction(path))


def read_number(text: str) -> float | None:
    """The number a text says ("1950.0", "1,950.00"), or None where it is not one plain finite number."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return number if math.isfinite(number) else None


def typed(value: Any, kind: str) -> FieldValue | None:
    """A field's value as its kind compares it: text without outer white space, a number as float, None if none.

    Args:
        value: from a sample's target, or a piece of an answer.
        kind: one of KINDS.
    """
    if value is None or isinstance(value, bool):
        return None
    if kind == "number":
        if isinstance(value, int | float):
            return float(value) if math.isfinite(value) else None
        return read_number(str(value))
    return str(value).strip() or None


class AnswerParser:
    """Reads the fields out of answers that follow a template such as "Product: {title}, Full Price: {price}".

    A field's text runs as far as it can: in "Product: a, Category: b, Category: c" the title is "a, Category: b". An
    answer that ends early is read as far as it follows the template; what is missing or of another kind is None.
    """

    def __init__(self, template: str | None, fields: Mapping[str, str]) -> None:
        """Takes the manifest's answer_template (None: the answer is the one field) and fields {name: kind}.

        Raises FieldError for a kind that is not known, for a template that the fields do not fit, and for one in which
        two fields touch.
        """
        for name, kind in fields.items():
            if kind not in KINDS:
                raise FieldError(f"field '{name}' is of kind '{kind}'; kinds that can be scored: {', '.join(KINDS)}")
        self.fields: dict[str, str] = dict(fields) or {WHOLE_ANSWER: "text"}
        if template is None:
            if len(self.fields) > 1:
                raise FieldError(
                    f"the manifest names {len(self.fields)} fields ({', '.join(self.fields)}) but no answer_template "
                    "to read them by; add one to the mapping and build the shards again"
                )
            template = "{" + next(iter(self.fields)) + "}"
        self._names, self._patterns = self._compile(template)
        missing = [name for name in self.fields if name not in self._names]
        if missing:
            raise FieldError(f"the answer_template '{template}' does not show the field(s) {', '.join(missing)}")
        # In the order people read them, whatever order the manifest's file has.
        self.fields = {name: self.fields[name] for name in self._names if name in self.fields}

    @staticmethod
    def _compile(template: str) -> tuple[list[str], list[re.Pattern[str]]]:
        """The template's field names in order, and patterns for the first n, n−1, … 1 of them."""
        names: list[str] = []
        pattern = ""
        patterns: list[str] = []
        for literal, name, _, _ in string.Formatter().parse(template):
            if name is None:
                pattern += re.escape(literal)
                continue
            if names and not literal:
                raise FieldError(f"in the answer_template '{template}' nothing stands between two fields")
            pattern += re.escape(literal) + "(.*)"
            names.append(name)
            patterns.append(pattern)
        if not patterns:
            raise FieldError(f"the answer_template '{template}' shows no field")
        patterns[-1] = pattern
        return names, [re.compile(one, re.DOTALL) for one in reversed(patterns)]

    def parse(self, answer: str) -> dict[str, FieldValue | None]:
        """What the answer says of each field, typed; None for each that cannot be read."""
        found: dict[str, str] = {}
        for pattern in self._patterns:
            match = pattern.fullmatch(answer.strip())
            if match:
                found = dict(zip(self._names, match.groups(), strict=False))
                break
        return {name: typed(found.get(name), kind) for name, kind in self.fields.items()}

    def truth(self, target: Mapping[str, Any], answer: str) -> dict[str, FieldValue | None]:
        """The true value of each field: from a sample's target, or its answer where the data names no fields."""
        if WHOLE_ANSWER in self.fields and WHOLE_ANSWER not in target:
            return {WHOLE_ANSWER: typed(answer, "text")}
        return {name: typed(target.get(name), kind) for name, kind in self.fields.items()}


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl whole or not at all."""
    with whole_file(path) as lines:
        for prediction in predictions:
            lines.write(prediction.to_json().encode() + b"\n")
