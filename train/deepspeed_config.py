"""DeepSpeed's configuration: its JSON file (memory and communication) joined with ours (batch, precision, clipping)."""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from train.config import ConfigError, locate, nearest
from train.config_schema import Config

# Keys of the JSON whose values our YAML owns, by the YAML key that owns each.
OWNED = {
    "train_batch_size": "batch.global_batch_packs",
    "train_micro_batch_size_per_gpu": "batch.global_batch_packs (one pack a rank at a time)",
    "gradient_accumulation_steps": "batch.global_batch_packs (accumulation follows from the number of ranks)",
    "managed_gradient_accumulation": "batch.global_batch_packs (the trainer says when a batch is whole)",
    "gradient_clipping": "optim.grad_clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "fp16": "model.precision and optim.loss_scale",
    "bf16": "model.precision",
    "bfloat16": "model.precision",
    "data_types.param_dtype": "model.precision",
    "activation_checkpointing": "model.checkpoint_decoder, model.checkpoint_vision and model.checkpoint_offload",
    "gradient_allreduce_op": "batch (the gradient is of the mean over a global batch's supervised tokens)",
    "dataloader_drop_last": "data.last_batch",
    "torch_autocast": "model.precision",
    "zero_allow_untested_optimizer": "optim",
    "zero_force_ds_cpu_optimizer": "optim",
    "steps_per_print": "logging.every_steps",
    "wandb": "wandb",
    "checkpoint": "checkpoint (the trainer writes its own)",
}

# DeepSpeed trains on without a word when it does not know a top-level key, so they are checked here (0.19.8).
KNOWN = (
    "zero_optimization",
    "aio",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "data_types",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "tensorboard",
    "timers",
    "wall_clock_breakdown",
)

# DeepSpeed's own as well, for what this trainer does otherwise or not at all.
UNUSED = (
    "autotuning",
    "comet",
    "compile",
    "data_efficiency",
    "datastates_ckpt",
    "expert_parallel",
    "hybrid_engine",
    "pipeline",
    "tensor_parallel",
    "use_data_before_expert_parallelism",
    "weight_quantization",
)


def set_values(value: Any) -> Any:
    """What a JSON value says once "auto" is taken out, which counts as not named; None where nothing is left."""
    if isinstance(value, Mapping):
        kept = {key: set_values(below) for key, below in value.items()}
        return {key: below for key, below in kept.items() if below is not None} or None
    return None if value == "auto" else value


def read(config: Config) -> dict[str, Any]:
    """The JSON file `config.deepspeed` names, checked: known keys, none that the YAML owns, a ZeRO stage of 2 or 3.

    Raises ConfigError that names file and key, with the nearest right one or the YAML key that owns it.
    """
    path = locate(config.deepspeed)
    if not path.is_file():
        there = ", ".join(sorted(f"ds_configs/{file.name}" for file in locate("ds_configs").glob("*.json")))
        raise ConfigError(f"deepspeed: no such file {config.deepspeed}; there are {there}")
    values = parse(path)
    lines = [line for key, value in values.items() for line in key_problems(key, value)]
    if lines:
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines))
    stage = (values.get("zero_optimization") or {}).get("stage")
    if stage not in (2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage!r}; the trainer works with 2 and 3")
    check_zero(path, values["zero_optimization"])
    return values


def key_problems(key: str, value: Any) -> Iterator[str]:
    """What is wrong with a top-level key, whatever else is inside it."""
    below = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {}
    for name, one in {key: value, **below}.items():
        if name in OWNED:
            yield (
                f"'{name}' is set there ({json.dumps(one)}) and by '{OWNED[name]}' of the YAML; keep the YAML value "
                f"and take '{name}' out of the JSON (or write \"auto\")"
            )
    if key in UNUSED:
        yield f"'{key}' is not for this trainer, which does that otherwise or not at all; take it out"
    elif key not in KNOWN and key not in OWNED:
        near = nearest(key, [*KNOWN, *OWNED])
        hint = f"did you mean '{near}'?" if near else f"known: {', '.join(KNOWN)}"
        yield removed_key(key) or f"unknown key '{key}', which DeepSpeed would pass over in silence; {hint}"


def removed_key(key: str) -> str | None:
    """What DeepSpeed says of a top-level key that it had once; None for any other, or where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        return None
    from train.deepspeed_checks import removed

    said = removed(key)
    return said and f"'{key}' is of an older DeepSpeed: {said}"


def parse(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without "auto" values; raises ConfigError with line and column where it is none."""
    try:
        values = json.loads(path.read_text(), object_pairs_hook=partial(once, path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); mend that line") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return set_values(values) or {}


def once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON; raises ConfigError for a key that stands in it twice, of which json keeps the last."""
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: '{twice[0]}' stands twice in one object; keep the one that is meant")
    return dict(pairs)


def check_zero(path: Path, zero: Mapping[str, Any]) -> None:
    """Raise ConfigError for an offload that our checkpoints cannot hold."""
    for key in ("offload_optimizer", "offload_param"):
        device = (zero.get(key) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise ConfigError(
                f'{path}: zero_optimization.{key}.device is "{device}"; the trainer works with "cpu" and "none"'
            )
    if zero["stage"] == 2 and zero.get("offload_optimizer"):
        raise ConfigError(f"{path}: offload_optimizer goes with ZeRO stage 3 here; take ds_configs/zero3_offload.json")


def compose(config: Config, values: Mapping[str, Any], world: int) -> dict[str, Any]:
    """The dictionary for deepspeed.initialize: the JSON's values and ours.

    A step has ceil(global_batch_packs / world) backward passes or fewer (the last batch of an epoch may be short), so
    DeepSpeed is told neither a batch nor when a step is due: each engine.step() ends one.
    """
    return {
        **values,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optim.grad_clip,
        "bf16": {"enabled": config.model.precision == "bf16"},
        "fp16": {
            "enabled": config.model.precision == "fp16",
            "loss_scale": config.optim.loss_scale or 0,
            "initial_scale_power": config.optim.loss_scale_power,
            "loss_scale_window": config.optim.loss_scale_window,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
