"""What a mapping makes of a row: columns → messages, pictures, target fields, key, product and split."""

import hashlib
import re
from collections.abc import Mapping as MappingType
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from data.chat import ChatError, listed_pictures, read_chat
from data.rules import (
    RENDERED,
    FieldRule,
    FilterRule,
    Piece,
    SplitRule,
    Strict,
    ValueRejected,
    is_missing,
    parse_template,
    read_number,
)
from data.schema import IMAGE_TAG, Rejected, Row, Sample, SampleError, image_names

ALL_IMAGES = "<|images|>"  # in a prompt: a tag for each picture of the row, each on a line
MAX_TEXT = 100_000  # characters of a sample's messages
_OPEN_TAG = re.compile(r"<\|(?=image_\d+\|>)")
SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class Mapping(Strict):
    """What a catalogue's columns mean."""

    key: str | None = None
    """Column that names a row; without it, its number does."""
    product: str | None = None
    """Column whose equal values belong in one split; without it, the key."""
    pictures: list[str] = Field(default_factory=list)
    """Columns of the pictures, in the order of <|image_1|>, <|image_2|>, …; each holds one or a list."""
    prompt: str | None = None
    """The user's text, image tags and {columns} included."""
    answer: str | None = None
    """The assistant's text."""
    chat: str | None = None
    """Column of whole conversations, in place of prompt and answer."""
    filters: list[FilterRule] = Field(default_factory=list)
    """Which rows are taken; all of them have to agree."""
    fields: dict[str, FieldRule] = Field(default_factory=dict)
    chat_template: Literal["bare", "phi3v"] = "phi3v"
    split: SplitRule
    keep: list[str] | None = None
    """Columns kept in `source`; without it, all."""
    origin: str | None = None
    """Where the data come from, in words; stands in manifest, report and model card, as the next one."""
    licence: str | None = None

    @cached_property
    def prompt_pieces(self) -> list[Piece]:
        return parse_template(self.prompt or "", "prompt")

    @cached_property
    def asks_by_column(self) -> bool:
        """Whether a column has a part in the prompt."""
        return any(piece.column for piece in self.prompt_pieces)

    @cached_property
    def prompts(self) -> dict[int, tuple[str, str, list[str]]]:
        """Number of pictures → their tags, the prompt without its columns, the numbers of the tags in it; as needed."""
        return {}

    @cached_property
    def answer_pieces(self) -> list[Piece]:
        return parse_template(self.answer or "", "answer")

    @cached_property
    def number_columns(self) -> frozenset[str]:
        return frozenset(rule.column for rule in self.fields.values() if rule.type == "number")

    @property
    def columns(self) -> list[str]:
        """Every column that the mapping names."""
        pieces = [piece.column for piece in (*self.prompt_pieces, *self.answer_pieces) if piece.column]
        fields = [rule.column for rule in self.fields.values()]
        filters = [rule.column for rule in self.filters]
        single = [name for name in (self.key, self.product, self.split.column, self.chat) if name]
        return list(dict.fromkeys([*single, *self.pictures, *pieces, *fields, *filters, *(self.keep or [])]))

    @property
    def answer_template(self) -> str | None:
        """The answer's template in terms of the target fields, to read answers by; None for conversations."""
        if self.chat:
            return None
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
    def question(self) -> str | None:
        """The user's text as it is asked of one picture, if no column has a part in it; else its template."""
        if self.prompt is None:
            return None
        text = self.prompt if self.asks_by_column else "".join(piece.literal for piece in self.prompt_pieces)
        return text.replace(ALL_IMAGES, "<|image_1|>")

    def screen(self, entry: Row | Rejected) -> Row | Rejected:
        """A row as it is, or set aside as `filtered`: nothing is fetched for it."""
        if isinstance(entry, Row):
            for rule in self.filters:
                if why := rule.refuses(entry.values.get(rule.column)):
                    key, detail = self.key_of(entry.number, entry.values), f"column {rule.column!r}: {why}"
                    return Rejected(number=entry.number, key=key, stage="read", reason="filtered", detail=detail)
        return entry

    def key_of(self, number: int, values: MappingType[str, Any]) -> str:
        """A key safe as a member's name; equal values give equal keys, so the caller makes them unique."""
        raw = values.get(self.key) if self.key else None
        if is_missing(raw) or not str(raw).strip():
            return f"{number:09d}"
        text = str(raw).strip()
        safe = _UNSAFE.sub("-", text)[:60]
        if safe == text:
            return safe
        return f"{safe}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"

    def product_of(self, values: MappingType[str, Any], key: str) -> str:
        """The product a row belongs to; a row without one is a product of its own, named by its key."""
        raw = values.get(self.product) if self.product else None
        if is_missing(raw) or not str(raw).strip():
            return key
        return str(raw).strip()

    def split_of(self, values: MappingType[str, Any]) -> str:
        """The split that the split column names. Raises ValueRejected: no-split | bad-split."""
        raw = values.get(self.split.column or "")
        name = "" if is_missing(raw) else str(raw).strip()
        if not name:
            raise ValueRejected("no-split", f"column {self.split.column!r} is empty")
        if not SPLIT_NAME.fullmatch(name):
            raise ValueRejected("bad-split", f"column {self.split.column!r}: {name[:80]!r} cannot name a folder")
        return name

    def sample(self, number: int, values: MappingType[str, Any], key: str, formats: list[str]) -> Sample:
        """Render a row.

        Arguments: the row's number and values; the sample's key; the formats of its pictures, in order.
        Raises ValueRejected: missing | bad-number | bad-value | bad-text | bad-chat | too-long.
        """
        messages = self._conversation(values) if self.chat else self._turns(values, len(formats))
        said = sum(len(message["content"]) for message in messages)
        if said > MAX_TEXT:
            raise ValueRejected("too-long", f"{said:,} characters of text, at most {MAX_TEXT:,} are taken")
        names = self.keep if self.keep is not None else [name for name in values if name not in RENDERED]
        try:
            return Sample(
                key=key,
                messages=tuple(messages),
                images=image_names(formats),
                target={name: self._value(rule.column, values) for name, rule in self.fields.items()},
                source={"row": number, "columns": {name: values.get(name) for name in names}},
            )
        except SampleError as error:
            raise ValueRejected("bad-value", str(error)) from error

    def _turns(self, values: MappingType[str, Any], pictures: int) -> list[dict[str, str]]:
        """Question and answer of a row."""
        if pictures not in self.prompts:
            tags = "\n".join(f"<|image_{number}|>" for number in range(1, pictures + 1))
            fixed = "".join(piece.literal.replace(ALL_IMAGES, tags) for piece in self.prompt_pieces)
            self.prompts[pictures] = tags, fixed, IMAGE_TAG.findall(fixed)
        tags, user, named = self.prompts[pictures]
        if self.asks_by_column:
            user = self._render(self.prompt_pieces, values, tags)
            if IMAGE_TAG.findall(user) != named:
                raise ValueRejected("bad-text", "columns side by side make up an image tag")
        answer = self._render(self.answer_pieces, values, None)
        return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]

    def _conversation(self, values: MappingType[str, Any]) -> list[dict[str, str]]:
        listed = sum(len(listed_pictures(values.get(column), required=False)) for column in self.pictures)
        try:
            return read_chat(values.get(self.chat or ""), listed).messages
        except ChatError as error:
            raise ValueRejected("bad-chat", f"column {self.chat!r}: {error}") from error

    def _render(self, pieces: list[Piece], values: MappingType[str, Any], tags: str | None) -> str:
        """A template's text; `tags` are those of all pictures in a prompt, None in an answer."""
        text = ""
        for piece in pieces:
            text += piece.literal if tags is None else piece.literal.replace(ALL_IMAGES, tags)
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
            text += said if tags is None else _OPEN_TAG.sub("<| ", said)
        return text

    def _value(self, column: str, values: MappingType[str, Any]) -> str | float:
        value = values.get(column)
        if is_missing(value):
            raise ValueRejected("missing", f"column {column!r} is empty")
        if column in self.number_columns:
            return read_number(column, value)
        if isinstance(value, list | dict | bytes):
            raise ValueRejected("bad-value", f"column {column!r} holds a {type(value).__name__}, not text")
        return str(value)
