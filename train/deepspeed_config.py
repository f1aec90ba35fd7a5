"""DeepSpeed's configuration: its JSON file (memory and communication) joined with ours (batch, precision, clipping)."""

import json
from collections.abc import Mapping
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
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "data_types",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "tensorboard",
    "wall_clock_breakdown",
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
    for key in values:
        if key in OWNED:
            raise ConfigError(
                f"{path}: '{key}' is set there ({json.dumps(values[key])}) and by '{OWNED[key]}' of the YAML; "
                f"keep the YAML value and take '{key}' out of the JSON (or write \"auto\")"
            )
        if key not in KNOWN:
            near = nearest(key, [*KNOWN, *OWNED])
            hint = f"did you mean '{near}'?" if near else f"known: {', '.join(KNOWN)}"
            raise ConfigError(f"{path}: unknown key '{key}', which DeepSpeed would pass over in silence; {hint}")
    stage = (values.get("zero_optimization") or {}).get("stage")
    if stage not in (2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage!r}; the trainer works with 2 and 3")
    check_zero(path, values["zero_optimization"])
    return values


def parse(path: Path) -> dict[str, Any]:
    """The JSON object in a file, without "auto" values; raises ConfigError with line and column where it is none."""
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); mend that line") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return set_values(values) or {}


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
