"""Write the list of settings in docs/config.md anew from train/config_schema.py: `python docs/make_config.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import ast
import json
import typing
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from train import config_schema
from train.config_schema import Config, ShardsSection

PAGE = ROOT / "docs/config.md"
START, END = "<!-- settings: written by docs/make_config.py -->", "<!-- end of settings -->"
SIGNS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", ShardsSection: "`{path, weight}`"}
# For keys whose name says enough where they are defined, and not to a reader of the page.
MEANINGS = {
    "run.folder": "Where run folders lie.",
    "run.seed": "Of the order of training, of LoRA's first values and of dropout.",
    "model.attention": "`auto`: flash where the GPU and `precision` allow it, else sdpa.",
    "model.checkpoint_vision": "The same for the vision tower.",
    "tune.method": "Train all parameters, low-rank adapters beside frozen ones, or adapters beside 4-bit ones.",
    "tune.lora.rank": "Width of an adapter.",
    "tune.lora.alpha": "An adapter's output is multiplied by `alpha / rank`.",
    "tune.lora.dropout": "On an adapter's input.",
    "tune.lora.parts": "Which linear layers get adapters.",
    "optim.lr": "Peak learning rate.",
    "optim.betas": "Of AdamW.",
    "optim.eps": "Of AdamW.",
    "optim.schedule": "How the rate falls after the warm-up.",
    "optim.warmup_steps": "Steps in which the rate rises to `lr`.",
    "wandb.project": "Weights & Biases project.",
    "wandb.entity": "Weights & Biases user or team; none: your default.",
    "wandb.tags": "Put on the run at Weights & Biases.",
}


def documented() -> dict[tuple[str, str], str]:
    """The text under each field in the schema's source, by (class, field), on one line."""
    found = {}
    for node in ast.parse(Path(config_schema.__file__).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
                found[node.name, ast.unparse(field.target)] = " ".join(str(text.value).split())
    return found


def in_words(kind: Any) -> str:
    """A type as people read it: "whole number > 0, or none"."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is NoneType:
        return "none"
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in inside)
    if origin is list:
        return f"list of {in_words(inside[0])}"
    if origin is dict:
        return f"{in_words(inside[1])} for each of {in_words(inside[0])}"
    if origin in (typing.Union, UnionType):
        return ", or ".join(in_words(one) for one in inside)
    if origin is Annotated:
        return " ".join(filter(None, [in_words(inside[0]), ", ".join(bounds(inside[1:]))]))
    return NAMES[kind]


def bounds(marks: typing.Iterable[Any]) -> typing.Iterator[str]:
    """What an annotation demands of a value."""
    for mark in marks:
        if isinstance(mark, FieldInfo):
            yield from bounds(mark.metadata)
        elif type(mark) in SIGNS:
            sign, name = SIGNS[type(mark)]
            yield f"{sign} {getattr(mark, name):g}"
        elif isinstance(mark, MinLen):
            yield f"{mark.min_length} of them"


def rows(section: type[BaseModel], prefix: str = "") -> typing.Iterator[str]:
    """A line of the table for each key of a section and the sections in it."""
    texts = documented()
    kinds = typing.get_type_hints(section, include_extras=True)
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{name}", kinds[name]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from rows(kind, f"{key}.")
            continue
        meaning = texts.get((section.__name__, name)) or MEANINGS[key]
        default = field.get_default(call_default_factory=True)
        yield f"| `{key}` | {in_words(kind)} | `{json.dumps(default)}` | {meaning.replace('|', chr(92) + '|')} |"


def table() -> str:
    """All settings as a Markdown table."""
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows(Config)])


def page(text: str) -> str:
    """The page with its list of settings as it should be now."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
