"""The parts of a mapping: templates, target fields, filters, the split; and how a cell's value is read."""

import re
import string
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from data.schema import UserError

RENDERED = ("__messages__", "__images__", "__split__")  # columns of shards as a source, which no sample keeps
MISSING = ("", "None", "nan", "NaN")  # what Python and pandas print for nothing
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?")


class MappingError(UserError):
    """A mapping that cannot be used."""


class ValueRejected(Exception):
    """A row whose values do not make a sample; `reason` is the class it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a template: fixed text, then a column's value unless `column` is None."""

    literal: str
    column: str | None
    spec: str


def parse_template(template: str, name: str) -> list[Piece]:
    """Cut "Product: {title}, {price:.2f}" into pieces. A name in braces is a column, whatever characters it has.

    Raises MappingError for braces that do not close, empty or nested ones, and conversions.
    """
    pieces = []
    try:
        for literal, column, spec, conversion in string.Formatter().parse(template):
            if column == "" or conversion or "{" in (spec or ""):
                raise ValueError("braces hold a column's name, then at most ':' and a format")
            pieces.append(Piece(literal, column, spec or ""))
    except ValueError as error:
        raise MappingError(
            f"{name} {template!r}: {error}; a brace that is meant as text is written twice: {{{{"
        ) from error
    return pieces


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FieldRule(Strict):
    """A field that scoring compares."""

    column: str
    type: Literal["text", "category", "number"]


class SplitRule(Strict):
    """How rows are dealt to splits: by a stable hash of the product, or as a column says."""

    fractions: dict[str, float] | None = None
    column: str | None = None


class FilterRule(Strict):
    """Which rows are taken: those whose column has one of some values, none of some, or a number within bounds."""

    column: str
    any_of: list[str | int | float | bool] | None = None
    none_of: list[str | int | float | bool] | None = None
    min: float | None = None
    max: float | None = None

    def refuses(self, value: Any) -> str | None:
        """Why a row with this value is not taken; None if it is."""
        said = "" if is_missing(value) else str(value).strip()
        if self.any_of is not None and said not in map(str, self.any_of):
            return f"{said[:80]!r} is none of {', '.join(map(str, self.any_of))}"
        if self.none_of is not None and said in map(str, self.none_of):
            return f"{said[:80]!r} is left out"
        if self.min is None and self.max is None:
            return None
        try:
            number = read_number(self.column, value)
        except ValueRejected as error:
            return error.detail
        if (self.min is not None and number < self.min) or (self.max is not None and number > self.max):
            return f"{number:g} is not within {self.min} … {self.max}"
        return None


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and value.strip() in MISSING)


def read_number(column: str, value: Any) -> float:
    """A cell as a number: 1950, "1950.0", "1,950.00". Raises ValueRejected: missing | bad-number."""
    if is_missing(value):
        raise ValueRejected("missing", f"column {column!r} is empty")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    if not _NUMBER.fullmatch(text):
        raise ValueRejected("bad-number", f"column {column!r}: {text[:80]!r} is no number")
    number = float(text.replace(",", ""))
    if number in (float("inf"), float("-inf")):
        raise ValueRejected("bad-number", f"column {column!r}: {text[:80]!r} is no finite number")
    return number
