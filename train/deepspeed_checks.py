"""What is inside the sections of DeepSpeed's JSON, held against DeepSpeed's own models of them (0.19.8, pinned)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
from deepspeed.runtime import constants
from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, ValidationError

from train.config import ConfigError, nearest

MODELS: dict[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "comms_logger": CommsLoggerConfig,
    "tensorboard": TensorBoardConfig,
    "csv_monitor": CSVConfig,
}
# Sections that DeepSpeed reads key by key, passing over any other.
KEYS: dict[str, Sequence[str]] = {
    "aio": tuple(AIO_DEFAULT_DICT),
    "flops_profiler": tuple(vars(DeepSpeedFlopsProfilerConfig({}))),
    "data_types": (
        constants.GRAD_ACCUM_DTYPE,
        constants.PARAM_DTYPE,
        constants.BUFFER_DTYPE,
        constants.KEEP_IN_FP32_MODULES,
    ),
}


def removed(key: str) -> str | None:
    """Why DeepSpeed no longer has a top-level key, in its words; None where it never had it."""
    return _REMOVED_TOP_LEVEL_CONFIG_KEYS.get(key)


def check_sections(values: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for what DeepSpeed would refuse, pass over or read as something else; a line for each key.

    values: of the JSON, checked by deepspeed_config.read. where: the file.
    """
    lines = []
    for section, inside in values.items():
        if section not in MODELS and section not in KEYS:
            continue
        if not isinstance(inside, Mapping):
            lines.append(f"{section} is {inside!r}: expected an object with keys")
        elif section in KEYS:
            lines += [unknown(f"{section}.{key}", key, KEYS[section]) for key in inside if key not in KEYS[section]]
        else:
            lines += problems(section, inside)
    if lines:
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines))


def problems(section: str, inside: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the keys of a section of which DeepSpeed has a model."""
    model = MODELS[section]
    wrong = set()
    for key in inside:
        reason = replaced(model, key) or (_REMOVED_ZERO_CONFIG_KEYS.get(key) if model is DeepSpeedZeroConfig else None)
        if reason:
            wrong.add(key)
            yield f"{section}.{key}: {reason}"
    try:
        model(**{key: value for key, value in inside.items() if key not in wrong})
    except ValidationError as error:
        for found in error.errors():
            path = [str(part) for part in found["loc"]]
            key = ".".join([section, *path])
            if found["type"] == "extra_forbidden":
                yield unknown(key, path[-1], spellings(inner(model, path[:-1])))
            else:
                yield f"{key} is {found['input']!r}: {found['msg']}"


def replaced(model: type[BaseModel], key: str) -> str | None:
    """What to write in place of an old name of a key, or of one that only DeepSpeed's code uses."""
    field = model.model_fields.get(key)
    if field is None:
        return None
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("deprecated"):
        new = str(extra.get("new_param", ""))
        return f"an old key; write '{new}'" if new else "an old key that does nothing any more; take it out"
    return f"write '{field.alias}'" if field.alias and field.alias != key else None


def spellings(model: type[BaseModel]) -> list[str]:
    """The keys of a model as a JSON has them, old ones left out."""
    return [field.alias or name for name, field in model.model_fields.items() if not replaced(model, name)] + [
        field.alias for field in model.model_fields.values() if field.alias
    ]


def inner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The model of a section inside a section."""
    for name in path:
        field = next((one for key, one in model.model_fields.items() if name in (key, one.alias)), None)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model


def unknown(key: str, name: str, known: Sequence[str]) -> str:
    """One line about a key that DeepSpeed does not know."""
    near = nearest(name, known)
    return f"unknown key '{key}'; " + (f"did you mean '{near}'?" if near else f"known: {', '.join(known)}")
