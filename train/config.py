"""Reading a run's settings: a YAML file, `--set section.key=value` on top, and what changed since an earlier start."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from data.schema import UserError
from train.config_schema import Config

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "train/configs/default.yaml"

# How the data come, not which.
READING = ("data.workers", "data.cache", "data.shard_cache", "data.patience_minutes", "data.max_bad")
# A run goes on when these changed: they say how long, how often and how loudly, not what is computed.
MAY_CHANGE = (
    "stop.",
    "evaluate.",
    "checkpoint.",
    "logging.",
    "wandb.",
    "run.stall_minutes",
    "optim.max_skipped",
    *READING,
)


class ConfigError(UserError):
    """Settings that cannot be used; says which, what was found and what is allowed."""


class Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text; here it is a number, as in JSON and Python. A key may stand once in a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, which would let the last of equal keys win in silence."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value a YAML text holds; raises ConfigError with line and column where it is not YAML."""
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        what = "no settings" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML"
        raise ConfigError(f"{place}: {what} ({getattr(error, 'problem', error)}); mend that line") from error


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """All dotted keys of the configuration, sections left out."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KINDS = ("str", "list", "int", "float")
# What other trainers call a setting, where no spelling leads from there to ours.
ELSEWHERE = {
    "learning_rate": "optim.lr",
    "max_grad_norm": "optim.grad_clip",
    "gradient_clipping": "optim.grad_clip",
    "lr_scheduler_type": "optim.schedule",
    "micro_batch_size": "batch.global_batch_packs",
    "batch_size": "batch.global_batch_packs",
    "per_device_train_batch_size": "batch.global_batch_packs",
    "gradient_accumulation_steps": "batch.global_batch_packs",
    "num_train_epochs": "stop.epochs",
    "max_steps": "stop.steps",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "dtype": "model.precision",
    "torch_dtype": "model.precision",
    "attn_implementation": "model.attention",
    "gradient_checkpointing": "model.checkpoint_decoder",
    "max_seq_length": "data.pack_length",
    "max_length": "data.pack_length",
    "dataloader_num_workers": "data.workers",
    "num_workers": "data.workers",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "eval_steps": "evaluate.every_steps",
    "logging_steps": "logging.every_steps",
    "output_dir": "run.folder",
    "lora_r": "tune.lora.rank",
    "lora_alpha": "tune.lora.alpha",
    "target_modules": "tune.lora.parts",
    "use_lora": "tune.method",
    "report_to": "wandb.mode",
}


def nearest(key: str, keys: Sequence[str]) -> str | None:
    """The known key that `key` was most likely meant to be, or None where none is close."""
    found = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not found:
        last = {known.rsplit(".", 1)[-1]: known for known in keys}
        found = [last[name] for name in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)]
    return found[0] if found else None


def unknown_key(key: str, where: str) -> str:
    """One line about a key that does not exist."""
    near = ELSEWHERE.get(key.rsplit(".", 1)[-1]) or nearest(key, [*known_keys(), *Config.model_fields])
    hint = f"did you mean '{near}'?" if near else f"the sections are {', '.join(Config.model_fields)}"
    return f"{where}: unknown key '{key}'; {hint}"


def explain(error: ValidationError, values: Mapping[str, Any], where: str) -> str:
    """All that pydantic found, a line each: key, what was found, what is allowed."""
    lines = []
    for found in error.errors():
        # Of a value that may be one of several kinds, pydantic names each kind as if it were a key.
        path = [str(part) for part in found["loc"] if part not in KINDS and "[" not in str(part)]
        key = ".".join(path)
        if found["type"] == "extra_forbidden":
            lines.append(unknown_key(key, where))
        elif found["type"] == "value_error":
            lines.append(f"{where}: {found['ctx']['error']}")
        else:
            lines.append(f"{where}: {key} is {found['input']!r}: {found['msg']}")
    return "\n".join(lines)


def parse_override(text: str) -> tuple[list[str], Any]:
    """`section.key=value` as (path, value); the value is read as YAML, so numbers, lists and null work."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {text}: expected section.key=value, for example --set optim.lr=1e-5")
    return key.strip().split("."), parse_yaml(value, f"--set {text}")


def set_value(values: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Put one value into nested sections; raises ConfigError for a key that cannot exist."""
    target = values
    for part in path[:-1]:
        below = target.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(unknown_key(".".join(path), where))
        target = below
    target[path[-1]] = value


def validate(values: Any, where: str) -> Config:
    """A Config of plain values; raises ConfigError that names every wrong key at once."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected sections with keys, found {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, values, where)) from error


def read_layers(path: Path, below: Sequence[Path] = ()) -> list[tuple[str, dict[str, Any]]]:
    """A configuration file and those that it extends, as (file, values), what is extended first.

    `extends: other.yaml`, beside the sections, names a file relative to the one that says so.
    Raises ConfigError for a file that is not there, is not YAML, has unknown keys, or extends itself.
    """
    if not path.is_file():
        there = ", ".join(sorted(f"train/configs/{file.name}" for file in DEFAULT.parent.glob("*.yaml")))
        named = f"{below[-1]}: extends {path}" if below else f"{path}"
        raise ConfigError(f"{named}: no such configuration file; there are {there}")
    if path.resolve() in [one.resolve() for one in below]:
        raise ConfigError(f"{below[-1]}: extends {path}, which extends it again; take one of the two lines out")
    values = parse_yaml(path.read_text(), str(path)) or {}
    if not isinstance(values, dict):
        validate(values, str(path))
    base = values.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: extends is {base!r}: expected the name of one configuration file")
    layers = read_layers(path.parent / base, (*below, path)) if base else []
    validate(merged([*(layer for _, layer in layers), values]), str(path))
    return [*layers, (str(path), values)]


def merged(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested sections put over one another; what comes later counts, lists are values."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = merged([found[key], value]) if both else value
    return found


def load(path: str | Path = DEFAULT, overrides: Sequence[str] = (), run: str | None = None) -> Config:
    """Read a configuration file.

    path: a YAML file of sections, over those of the file it `extends`; keys left out keep their defaults.
    overrides: `section.key=value` each, put on top in their order.
    run: name of the run, over `run.name`; where neither is set it is the file's stem.
    Raises ConfigError, naming file and key, for what is unknown, of a wrong type or out of bounds.
    """
    path = Path(path)
    values = merged(layer for _, layer in read_layers(path))
    for text in overrides:
        where, value = parse_override(text)
        set_value(values, where, value, f"--set {text}")
    named = run or (values.get("run") or {}).get("name") or path.stem
    set_value(values, ["run", "name"], named, "--run")
    return validate(values, f"{path} with --set" if overrides else str(path))


def origins(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Where each dotted key that somebody set was set last: a file's name, or `--set`."""
    found = {key: where for where, values in read_layers(Path(path)) for key in flatten(values)}
    return found | {".".join(parse_override(text)[0]): "--set" for text in overrides}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, as key: (old, new); a key that one lacks counts as None there."""
    flat_old, flat_new = flatten(old), flatten(new)
    return {
        key: (flat_old.get(key), flat_new.get(key))
        for key in [*flat_old, *(key for key in flat_new if key not in flat_old)]
        if flat_old.get(key) != flat_new.get(key)
    }


def may_change(key: str) -> bool:
    """Whether a run with this key changed may go on where it stopped."""
    return key.startswith(MAY_CHANGE)


def dump(config: Config) -> str:
    """The configuration with every key, as YAML."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def locate(path: str) -> Path:
    """A file of the project named in a configuration: seen from here, else from the checkout's root."""
    here = Path(path)
    return here if here.is_absolute() or here.exists() else ROOT / path
