"""A mapping to start from: what the first rows of a catalogue look like, written as YAML that builds."""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import yaml

from data.chat import ChatError, listed_pictures, read_chat
from data.entries import Source, SourceError
from data.mapping import ALL_IMAGES
from data.rules import ValueRejected, is_missing, read_number
from data.schema import Row
from data.tars import PICTURES

LOOK = 200  # rows
_SHOWN = 3  # values of each column
_WIDTH = 60  # characters of a value
_PICTURE_NAMES = ("image", "img", "photo", "picture", "file_name")
_TEXT_NAMES = ("title", "name", "caption", "description", "text")


def suggest_mapping(source: Source, where: str) -> str:
    """The columns of a catalogue with three values each, as comments, and a mapping of them.

    Arguments: the catalogue; as the person named it. Returns YAML. Raises SourceError if no row can be read.
    """
    rows = [entry.values for entry in islice(source.entries(), LOOK) if isinstance(entry, Row)]
    if not rows:
        raise SourceError(f"{where}: none of its first {LOOK} rows can be read")
    columns = {name: [row.get(name) for row in rows] for name in source.columns}
    lines = [f"# The columns of {_said(source.name)}, with values of its first {len(rows)} rows:"]
    for name, values in columns.items():
        shown = list(dict.fromkeys(_said(value) for value in values if not is_missing(value)))[:_SHOWN]
        lines.append(f"#   {_said(name)}: {' | '.join(shown) or 'nothing in these rows'}")
    lines += [
        "# Save this as mapping.yaml, edit it, and look at the first samples before you build:",
        f"#   python -m data.build --preset mapping.yaml --source {_said(where)} --output shards --dry-run",
    ]
    text = yaml.safe_dump(_mapping(columns), sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join(lines) + "\n" + text


def _said(value: Any) -> str:
    """A value on one line, cut."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return f"a picture of {len(value['bytes']):,} bytes"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_said)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _mapping(columns: dict[str, list[Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    key = next((name for name, values in columns.items() if _is_key(name, values)), None)
    if key:
        record["key"] = key
    pictures = [name for name, values in columns.items() if _holds_pictures(name, values)]
    if len(pictures) > 1:  # the same pictures may stand in several columns, as the members of a tar do
        pictures = ["images"] if "images" in pictures and "__key__" in columns else pictures
    record["pictures"] = pictures
    chat = next((name for name, values in columns.items() if _is_chat(values)), None)
    if chat:
        record["chat"] = chat
    else:
        rest = {
            name: values for name, values in columns.items() if name not in pictures and not set("{}:!") & set(name)
        }
        record |= _question(columns, pictures) | _answer(rest, key)
    if "split" in columns and not any(is_missing(value) for value in columns["split"]):
        record["split"] = {"column": "split"}
    else:
        record["split"] = {"fractions": {"train": 0.9, "validation": 0.05, "test": 0.05}}
    return record


def _is_key(name: str, values: list[Any]) -> bool:
    plain = [value for value in values if isinstance(value, str | int) and not is_missing(value)]
    if len(plain) < len(values) or len(set(map(str, plain))) < len(plain):
        return False
    words = name.lower().replace("-", "_").split("_")
    return name == "__key__" or bool({"id", "sku", "key", "code", "ean", "asin", "gtin"} & set(words))


def _holds_pictures(name: str, values: list[Any]) -> bool:
    found = [one for value in values for one in listed_pictures(value, required=False)]
    found = [one for one in found if not is_missing(one)]
    if not found:
        return False
    if all(isinstance(one, bytes) or (isinstance(one, dict) and "bytes" in one) for one in found):
        return True
    if not all(isinstance(one, str) for one in found):
        return False
    endings = [one.partition("?")[0].rpartition(".")[2].lower() in PICTURES for one in found]
    named = any(part in name.lower() for part in _PICTURE_NAMES)
    links = [one.startswith(("http://", "https://")) for one in found]
    return sum(endings) > len(found) / 2 or (named and sum(links) > len(found) / 2)


def _is_chat(values: list[Any]) -> bool:
    """Whether most rows hold conversations, however many pictures they name."""
    found = 0
    for value in values:
        if not isinstance(value, list | str):
            return False
        try:
            read_chat(value, 0)
        except ChatError as error:
            found += "the text names" in str(error)
        else:
            found += 1
    return found > len(values) / 2


def _question(columns: Mapping[str, list[Any]], pictures: list[str]) -> dict[str, str]:
    lists = any(
        isinstance(value, list) or len(listed_pictures(value, False)) > 1
        for name in pictures
        for value in columns[name]
    )
    if lists:
        return {"prompt": f"{ALL_IMAGES}\nWhat is shown here?"}
    tags = "".join(f"<|image_{number}|>\n" for number in range(1, len(pictures) + 1))
    return {"prompt": f"{tags}What is shown here?"}


def _answer(columns: dict[str, list[Any]], key: str | None) -> dict[str, Any]:
    """An answer of up to three columns: what it is called, its kind, its price."""
    fields: dict[str, str] = {}
    for kind, fits in (("text", _is_text), ("category", _is_category), ("number", _is_number)):
        fitting = [name for name, values in columns.items() if name != key and name not in fields and fits(values)]
        named = [name for name in fitting if any(part in name.lower() for part in _NAMES[kind])]
        if named or (fitting and kind != "number"):
            fields[(named or fitting)[0]] = kind
    if not fields:
        name = next(iter(columns), None) or key
        return {"answer": f"{{{name}}}" if name else "yes"}
    if len(fields) == 1:
        answer = f"{{{next(iter(fields))}}}"
    else:
        answer = ", ".join(f"{name.replace('_', ' ').capitalize()}: {{{name}}}" for name in fields)
    return {"answer": answer, "fields": {name: {"column": name, "type": kind} for name, kind in fields.items()}}


_NAMES = {"text": _TEXT_NAMES, "category": ("category", "class", "label", "type", "kind"), "number": ("price", "cost")}


def _filled(values: list[Any]) -> list[str]:
    return [str(value).strip() for value in values if isinstance(value, str | int | float) and not is_missing(value)]


def _is_text(values: list[Any]) -> bool:
    words = [value for value in values if isinstance(value, str) and not is_missing(value)]
    letters = sum(any(letter.isalpha() for letter in word) for word in words)
    links = sum("://" in word for word in words)
    return letters > 0.8 * len(values) and not links and len(set(words)) > len(words) / 2


def _is_category(values: list[Any]) -> bool:
    filled = _filled(values)
    return len(filled) > 0.8 * len(values) and 1 < len(set(filled)) <= max(2, len(filled) // 3)


def _is_number(values: list[Any]) -> bool:
    return sum(map(_reads_as_number, values)) > 0.8 * len(values)


def _reads_as_number(value: Any) -> bool:
    try:
        read_number("", value)
    except ValueRejected:
        return False
    return True
