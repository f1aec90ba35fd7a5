"""What flows through the shard builder and out of the shards: rows, pictures, samples, rejections, user errors."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
ROLES = ("system", "user", "assistant")
KEY = re.compile(r"[A-Za-z0-9_~-]{1,90}")
_TO_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class UserError(Exception):
    """Something the user can mend: the message says where, what was found and allowed, and what to do.

    Entry points print it as `error: …` and end with code 2, without a traceback.
    """


class SampleError(ValueError):
    """What should be a sample is not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the catalogue."""

    number: int
    """Place in the catalogue, from 0."""
    values: dict[str, Any]
    """Column → value as the source has it: text from CSV, typed from Parquet and JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A checked picture: decoded in full once, upright as it stands."""

    data: bytes
    """Encoded; as found, or rewritten if it had to be turned."""
    format: str
    """jpg | png | webp | gif | bmp | tiff"""
    width: int
    height: int
    sha256: str
    """Of `data`, hex."""
    phash: int
    """Perceptual hash, 64 bits, unsigned."""
    look: bytes = b""
    """A small likeness (data/looks.py), by which near duplicates are found; empty where none is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A row that is in no shard, and why."""

    number: int
    key: str | None
    stage: str
    """Where it was found: read | fetch | map | split."""
    reason: str
    """The class it is counted under."""
    detail: str

    def to_json(self) -> bytes:
        """One line of rejected.jsonl, its newline included."""
        record = {
            "row": self.number,
            "key": self.key,
            "stage": self.stage,
            "reason": self.reason,
            "detail": self.detail,
        }
        return json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example: messages, the pictures they speak of, and the truth that scoring compares.

    Raises SampleError when made of parts that do not fit together.
    """

    key: str
    messages: tuple[dict[str, str], ...]
    """Each {"role": …, "content": …}; image tags count in all but the assistant's, where they are text."""
    images: tuple[str, ...]
    """Suffixes of the tar members in the order of <|image_k|>: "jpg", or "0.jpg", "1.png"."""
    target: dict[str, Any]
    """Field → true value."""
    source: dict[str, Any]
    """{"row": number, "columns": {…}}: enough to render another prompt without the catalogue."""

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.key):
            raise SampleError(f"key {self.key!r} must be 1 to 90 of A-Z a-z 0-9 _ ~ -")
        if not self.messages:
            raise SampleError(f"sample {self.key!r} has no messages")
        for message in self.messages:
            role, content = message.get("role"), message.get("content")
            if len(message) != 2 or not isinstance(role, str) or not isinstance(content, str):
                raise SampleError(
                    f"sample {self.key!r}: a message has a role and a content, both text; found {message!r}"
                )
            if role not in ROLES:
                raise SampleError(f"sample {self.key!r}: role {role!r} is none of {', '.join(ROLES)}")
        tags = image_tags(self.messages)
        if tags != set(range(1, len(self.images) + 1)):
            raise SampleError(
                f"sample {self.key!r}: the prompt names pictures {sorted(tags)}, the sample has {len(self.images)}; "
                "tags must be <|image_1|> … without a gap, one number for each picture"
            )

    def to_json(self) -> bytes:
        """The sample's JSON member, UTF-8, the same bytes for the same sample.

        Raises SampleError for text that UTF-8 cannot hold (a lone surrogate) and for values that JSON cannot (NaN).
        """
        record = {
            "messages": list(self.messages),
            "images": list(self.images),
            "target": self.target,
            "source": self.source,
        }
        try:
            return _TO_JSON.encode(record).encode()
        except (UnicodeEncodeError, ValueError, TypeError) as error:
            raise SampleError(f"sample {self.key!r} cannot be written: {error}") from error

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "Sample":
        """The sample that `to_json` wrote; the key stands in the member's name, not in the JSON. Raises SampleError."""
        try:
            record = json.loads(data)
            parts = {name: record[name] for name in ("messages", "images", "target", "source")}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SampleError(f"sample {key!r} is not the JSON of a sample: {error!r}") from error
        messages, images = parts["messages"], parts["images"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise SampleError(f"sample {key!r}: messages is not a list of objects")
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            raise SampleError(f"sample {key!r}: images is not a list of names")
        if not isinstance(parts["target"], dict) or not isinstance(parts["source"], dict):
            raise SampleError(f"sample {key!r}: target and source are not objects")
        return cls(
            key=key, messages=tuple(messages), images=tuple(images), target=parts["target"], source=parts["source"]
        )


def image_names(formats: Sequence[str]) -> tuple[str, ...]:
    """Member suffixes for a sample's pictures: "jpg" for one, "0.jpg", "1.png" for several."""
    if len(formats) == 1:
        return (formats[0],)
    return tuple(f"{place}.{suffix}" for place, suffix in enumerate(formats))


def image_tags(messages: tuple[dict[str, str], ...]) -> set[int]:
    """The numbers of the pictures that the messages name; the assistant's turns name none."""
    prompts = (message["content"] for message in messages if message["role"] != "assistant")
    return {int(number) for prompt in prompts for number in IMAGE_TAG.findall(prompt)}


def nearest(name: str, known: list[str]) -> str:
    """A hint for a name that is not known: ", did you mean 'title'?", or nothing."""
    matches = get_close_matches(name, known, n=1) or [one for one in known if one.lower() == name.lower()]
    return f", did you mean {matches[0]!r}?" if matches else ""
