"""Presets and mappings of one's own: columns → messages, pictures, target fields, key, product and split."""

import hashlib
import re
import string
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data.schema import IMAGE_TAG, Sample, SampleError, UserError, nearest
from data.shards import image_names

PRESETS = Path(__file__).parent / "presets"
MISSING = ("", "None", "nan", "NaN")  # what Python and pandas print for nothing
MAX_TEXT = 100_000  # characters of a sample's messages
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?")
_OPEN_TAG = re.compile(r"<\|(?=image_\d+\|>)")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FieldRule(_Strict):
    """A field that scoring compares."""

    column: str
    type: Literal["text", "category", "number"]


class SplitRule(_Strict):
    """How rows are dealt to splits: by a stable hash of the product, or as a column says."""

    fractions: dict[str, float] | None = None
    column: str | None = None


class Mapping(_Strict):
    """What a catalogue's columns mean."""

    key: str | None = None
    """Column that names a row; without it, its number does."""
    product: str | None = None
    """Column whose equal values belong in one split; without it, the key."""
    pictures: list[str]
    """Columns of the pictures, in the order of <|image_1|>, <|image_2|>, …"""
    prompt: str
    """The user's text, image tags and {columns} included."""
    answer: str
    """The assistant's text."""
    fields: dict[str, FieldRule] = {}
    chat_template: Literal["bare", "phi3v"] = "phi3v"
    split: SplitRule
    keep: list[str] | None = None
    """Columns kept in `source`; without it, all."""

    @cached_property
    def prompt_pieces(self) -> list[Piece]:
        return parse_template(self.prompt, "prompt")

    @cached_property
    def answer_pieces(self) -> list[Piece]:
        return parse_template(self.answer, "answer")

    @cached_property
    def number_columns(self) -> frozenset[str]:
        return frozenset(rule.column for rule in self.fields.values() if rule.type == "number")

    @property
    def columns(self) -> list[str]:
        """Every column that the mapping names."""
        pieces = [piece.column for piece in (*self.prompt_pieces, *self.answer_pieces) if piece.column]
        fields = [rule.column for rule in self.fields.values()]
        single = [name for name in (self.key, self.product, self.split.column) if name]
        return list(dict.fromkeys([*single, *self.pictures, *pieces, *fields, *(self.keep or [])]))

    @property
    def answer_template(self) -> str:
        """The answer's template in terms of the target fields, by which answers are read back."""
        names: dict[str, str] = {}
        for name, rule in self.fields.items():
            names.setdefault(rule.column, name)
        text = ""
        for piece in self.answer_pieces:
            text += piece.literal.replace("{", "{{").replace("}", "}}")
            if piece.column:
                # A column that is no field keeps its name, unless a field has that name already.
                name = names.get(piece.column, piece.column)
                name = f"column {name}" if piece.column not in names and name in self.fields else name
                text += "{" + name + (f":{piece.spec}" if piece.spec else "") + "}"
        return text

    @property
    def question(self) -> str:
        """The user's text as it is asked, if no column has a part in it; else its template."""
        if any(piece.column for piece in self.prompt_pieces):
            return self.prompt
        return "".join(piece.literal for piece in self.prompt_pieces)

    def key_of(self, number: int, values: MappingType[str, Any]) -> str:
        """A key safe as a member's name; equal values give equal keys, so the caller makes them unique."""
        raw = values.get(self.key) if self.key else None
        if raw is None or str(raw).strip() in MISSING:
            return f"{number:09d}"
        text = str(raw).strip()
        safe = _UNSAFE.sub("-", text)[:60]
        if safe == text:
            return safe
        return f"{safe}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"

    def product_of(self, number: int, values: MappingType[str, Any]) -> str:
        """The product a row belongs to; a row without one is a product of its own."""
        raw = values.get(self.product) if self.product else None
        if raw is None or str(raw).strip() in MISSING:
            return self.key_of(number, values)
        return str(raw).strip()

    def split_of(self, values: MappingType[str, Any]) -> str:
        """The split that the split column names. Raises ValueRejected: no-split | bad-split."""
        raw = values.get(self.split.column or "")
        name = "" if raw is None else str(raw).strip()
        if name in MISSING:
            raise ValueRejected("no-split", f"column {self.split.column!r} is empty")
        if not _SPLIT_NAME.fullmatch(name):
            raise ValueRejected("bad-split", f"column {self.split.column!r}: {name[:80]!r} cannot name a folder")
        return name

    def sample(self, number: int, values: MappingType[str, Any], key: str, formats: list[str]) -> Sample:
        """Render a row.

        Arguments: the row's number and values; the sample's key; the formats of its pictures, in order.
        Raises ValueRejected: missing | bad-number | bad-value | bad-text | too-long.
        """
        user = self._render(self.prompt_pieces, values, prompt=True)
        fixed = "".join(piece.literal for piece in self.prompt_pieces)
        if IMAGE_TAG.findall(user) != IMAGE_TAG.findall(fixed):
            raise ValueRejected("bad-text", "columns side by side make up an image tag")
        answer = self._render(self.answer_pieces, values, prompt=False)
        if len(user) + len(answer) > MAX_TEXT:
            raise ValueRejected(
                "too-long", f"{len(user) + len(answer):,} characters of text, at most {MAX_TEXT:,} are taken"
            )
        kept = values if self.keep is None else {name: values.get(name) for name in self.keep}
        try:
            return Sample(
                key=key,
                messages=({"role": "user", "content": user}, {"role": "assistant", "content": answer}),
                images=image_names(formats),
                target={name: self._value(rule.column, values) for name, rule in self.fields.items()},
                source={"row": number, "columns": dict(kept)},
            )
        except SampleError as error:
            raise ValueRejected("bad-value", str(error)) from error

    def _render(self, pieces: list[Piece], values: MappingType[str, Any], prompt: bool) -> str:
        text = ""
        for piece in pieces:
            text += piece.literal
            if piece.column is None:
                continue
            value = self._value(piece.column, values)
            try:
                said = format(value, piece.spec)
            except ValueError as error:
                raise ValueRejected(
                    "bad-value", f"column {piece.column!r}: {value!r} as {piece.spec!r}: {error}"
                ) from error
            # A picture is named by the mapping alone: the tag's opening is broken in what a catalogue brings.
            text += _OPEN_TAG.sub("<| ", said) if prompt else said
        return text

    def _value(self, column: str, values: MappingType[str, Any]) -> str | float:
        value = values.get(column)
        if value is None or (isinstance(value, str) and value.strip() in MISSING):
            raise ValueRejected("missing", f"column {column!r} is empty")
        if column in self.number_columns:
            return _number(column, value)
        if isinstance(value, list | dict | bytes):
            raise ValueRejected("bad-value", f"column {column!r} holds a {type(value).__name__}, not text")
        return str(value)


def _number(column: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    if not _NUMBER.fullmatch(text):
        raise ValueRejected("bad-number", f"column {column!r}: {text[:80]!r} is no number")
    number = float(text.replace(",", ""))
    if number in (float("inf"), float("-inf")):
        raise ValueRejected("bad-number", f"column {column!r}: {text[:80]!r} is no finite number")
    return number


def load_mapping(preset: str) -> Mapping:
    """A preset by its name, or a mapping by its file (….yaml).

    Raises MappingError for an unknown name, a file that is not there, YAML or entries that are not right, and prompts,
    answers, fields and splits that do not fit together.
    """
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise MappingError(f"{path}: there is no such mapping; copy one from {PRESETS} and edit it")
    else:
        path = PRESETS / f"{preset}.yaml"
        known = sorted(one.stem for one in PRESETS.glob("*.yaml"))
        if preset not in known:
            raise MappingError(
                f"there is no preset {preset!r}{nearest(preset, known)}; there are {', '.join(known)}, or name a file "
                "of your own that ends in .yaml"
            )
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MappingError(f"{path} is not YAML: {error}") from error
    if not isinstance(record, dict):
        raise MappingError(f"{path}: a mapping has entries such as key, pictures, prompt, answer; see {PRESETS}")
    return make_mapping(record, str(path))


def make_mapping(record: dict[str, Any], where: str) -> Mapping:
    """Check a mapping's entries; `where` names it in errors. Raises MappingError."""
    unknown = sorted(str(name) for name in record if name not in Mapping.model_fields)
    if unknown:
        known = list(Mapping.model_fields)
        raise MappingError(
            f"{where}: unknown entry {unknown[0]!r}{nearest(unknown[0], known)}; entries are {', '.join(known)}"
        )
    try:
        mapping = Mapping(**record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MappingError(f"{where}: {place}: {first['msg']} (found {first['input']!r})") from error
    _check(mapping, where)
    return mapping


def _check(mapping: Mapping, where: str) -> None:
    tags = {int(number) for piece in mapping.prompt_pieces for number in IMAGE_TAG.findall(piece.literal)}
    wanted = set(range(1, len(mapping.pictures) + 1))
    if tags != wanted:
        raise MappingError(
            f"{where}: the prompt names pictures {sorted(tags)}, the mapping has {len(wanted)} picture columns; "
            f"write {''.join(f'<|image_{number}|>' for number in sorted(wanted)) or 'no image tag'} into the prompt"
        )
    shown = {piece.column for piece in mapping.answer_pieces}
    for name, rule in mapping.fields.items():
        if rule.column not in shown:
            raise MappingError(f"{where}: field {name!r} is of column {rule.column!r}, which the answer does not show")
    split = mapping.split
    if (split.fractions is None) == (split.column is None):
        raise MappingError(f"{where}: split needs either fractions (such as {{train: 0.9, test: 0.1}}) or a column")
    if split.fractions is not None:
        total = sum(split.fractions.values())
        if abs(total - 1) > 1e-6 or min(split.fractions.values()) < 0:
            raise MappingError(
                f"{where}: the split's fractions are {split.fractions}, together {total:g}; they must make 1"
            )
        for name in split.fractions:
            if not _SPLIT_NAME.fullmatch(name):
                raise MappingError(f"{where}: split {name!r} cannot name a folder; use letters, digits, _ and -")


def check_columns(mapping: Mapping, columns: tuple[str, ...], where: str) -> None:
    """Raise MappingError, listing the columns, if the mapping names one that the catalogue has not."""
    for name in mapping.columns:
        if name not in columns:
            raise MappingError(
                f"{where} has no column {name!r}{nearest(name, list(columns))}; its columns: {', '.join(columns)}"
            )
