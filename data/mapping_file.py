"""Presets and mappings of one's own: read from their YAML, and checked before a row is read."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.mapping import ALL_IMAGES, SPLIT_NAME, Mapping
from data.rules import MappingError
from data.schema import IMAGE_TAG, nearest

PRESETS = Path(__file__).parent / "presets"


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
    if mapping.chat is not None:
        named = [name for name in ("prompt", "answer") if getattr(mapping, name) is not None]
        if named or mapping.fields:
            raise MappingError(f"{where}: chat takes whole conversations; leave out {', '.join(named) or 'fields'}")
    elif mapping.prompt is None or mapping.answer is None:
        raise MappingError(f"{where}: a mapping needs prompt and answer, or chat with the column of conversations")
    else:
        _check_tags(mapping, where)
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
            if not SPLIT_NAME.fullmatch(name):
                raise MappingError(f"{where}: split {name!r} cannot name a folder; use letters, digits, _ and -")


def _check_tags(mapping: Mapping, where: str) -> None:
    literals = "".join(piece.literal for piece in mapping.prompt_pieces)
    tags = {int(number) for number in IMAGE_TAG.findall(literals)}
    if ALL_IMAGES in literals and mapping.pictures and not tags and literals.count(ALL_IMAGES) == 1:
        return
    wanted = set(range(1, len(mapping.pictures) + 1))
    if tags != wanted or ALL_IMAGES in literals:
        raise MappingError(
            f"{where}: the prompt names pictures {sorted(tags)}, the mapping has {len(wanted)} picture columns; "
            f"write {''.join(f'<|image_{number}|>' for number in sorted(wanted)) or 'no image tag'} into the prompt, "
            f"or {ALL_IMAGES} once for all pictures of a row"
        )


def check_columns(mapping: Mapping, columns: tuple[str, ...], where: str) -> None:
    """Raise MappingError, listing the columns, if the mapping names one that the catalogue has not."""
    for name in mapping.columns:
        if name not in columns:
            raise MappingError(
                f"{where} has no column {name!r}{nearest(name, list(columns))}; its columns: {', '.join(columns)}"
            )
