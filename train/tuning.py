"""What is trained of the model, as the settings say: all of it, some parts, or adapters, beside a 4-bit base or not."""

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_modules

from train.config import ConfigError
from train.config_schema import Config
from train.model import Phi3VForCausalLM
from train.model.joined import join_adapters
from train.model.kernels import why_no_compiler, why_no_liger
from train.model.lora import PARTS, add_lora, check_adapter, set_trainable
from train.pipeline.plan import Plan

# Kept as they are under QLoRA: the tower, whose 4-bit features would be blurred for every layer behind, and the head.
NOT_QUANTIZED = ["model.vision_embed_tokens", "lm_head"]

STEPS_LOOKED_AT = 2000


def check_tuning(config: Config, zero: Mapping[str, Any]) -> None:
    """Raise ConfigError for a way of tuning that cannot be had; nothing is loaded for it.

    zero: `zero_optimization` of DeepSpeed's file.
    """
    if config.tune.method == "qlora":
        check_quantized(zero["stage"])
    if config.tune.method != "full" and whole_layers(zero):
        raise ConfigError(
            f"tune.method: {config.tune.method} does not go with leaf_module of {config.deepspeed}: layers that are "
            "gathered as a whole let go of their frozen weights before backward is through with them; take "
            "ds_configs/zero3.json or ds_configs/zero2.json"
        )
    lora = config.tune.lora
    if config.tune.method != "full" and lora.adapter is not None:
        try:
            check_adapter(**lora.model_dump(include={"rank", "alpha", "parts", "rslora", "dora"}), folder=lora.adapter)
        except ValueError as error:
            raise ConfigError(f"tune.lora.adapter: {error}") from error


def check_kernels(config: Config, device: torch.device) -> None:
    """Raise ConfigError for fused kernels that cannot be had on a device."""
    if config.model.liger and (obstacle := why_no_liger(device)):
        raise ConfigError(f"model.liger: {obstacle}; or set model.liger: false")
    if config.model.compile and (obstacle := why_no_compiler(device)):
        raise ConfigError(f"model.compile: {obstacle}; or set model.compile: false")


def whole_layers(zero: Mapping[str, Any]) -> list[str]:
    """The classes of layers that ZeRO-3 gathers as a whole (`leaf_module`)."""
    classes = (zero.get("leaf_module") or {}).get("classes") or []
    return list(classes) if zero["stage"] == 3 else []


def check_calls(config: Config, zero: Mapping[str, Any], plan: Plan) -> None:
    """Raise ConfigError where the tower would run several times a pass, and its layers are gathered as a whole.

    ZeRO-3 counts such a layer's gradients as due once and finds a second one. Looks at the first steps of the plan;
    `engine.train_pack` looks at each pack.
    """
    if not tower_once(zero):
        return
    for step in range(min(plan.steps_per_epoch, STEPS_LOOKED_AT)):
        for pack in plan.batch(step).packs:
            if pack.crops > config.model.crops_per_chunk:
                raise several_calls(config)


def tower_once(zero: Mapping[str, Any]) -> bool:
    """Whether the vision tower may run once a pass and no more."""
    return any("CLIP" in name for name in whole_layers(zero))


def several_calls(config: Config) -> ConfigError:
    """What to say of a pack whose crops go through the tower in several calls."""
    return ConfigError(
        f"model.crops_per_chunk: a pack has more crops than the {config.model.crops_per_chunk} that go through the "
        f"vision tower at once, but leaf_module of {config.deepspeed} gathers the tower's layers as a whole, which "
        "works for one call a pass; raise model.crops_per_chunk, lower data.pack_length, or take ds_configs/zero3.json"
    )


def check_quantized(zero_stage: int) -> None:
    """Raise ConfigError where 4-bit weights cannot be had: no bitsandbytes, no device for it, or ZeRO-3."""
    if zero_stage == 3:
        raise ConfigError(
            "tune.method: qlora and ZeRO-3 do not go together: 4-bit weights cannot be partitioned; "
            "set deepspeed: ds_configs/zero2.json, or tune.method: lora"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "tune.method: qlora needs bitsandbytes, which is not installed: "
            "pip install -c constraints.txt -e '.[qlora]'; or set tune.method: lora"
        )
    from transformers.integrations import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except RuntimeError as error:
        raise ConfigError(f"tune.method: qlora: {error}; or set tune.method: lora") from error


def loading_options(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told besides: under QLoRA how weights become 4-bit (arXiv 2305.14314, section 3).

    dtype: what forward and backward compute in.
    """
    if config.tune.method != "qlora":
        return {}
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )
    return {"quantization_config": quantized}


def prepare(model: Phi3VForCausalLM, config: Config) -> torch.nn.Module:
    """The loaded model with its adapters, or with parts frozen.

    Raises ConfigError where nothing is left to train, or where adapters do not fit the model.
    """
    if config.tune.method == "full":
        if config.tune.freeze:
            freeze(model, config.tune.freeze)
        return model
    # The adapters' first values are drawn here, the same on every rank.
    torch.manual_seed(config.run.seed)
    try:
        adapted, _ = add_lora(model, **config.tune.lora.model_dump())
    except ValueError as error:
        raise ConfigError(f"tune.lora: {error}") from error
    if config.tune.lora.dora and any(hasattr(parameter, "ds_id") for parameter in adapted.parameters()):
        gather_for_dora(adapted)
    join_adapters(adapted)
    return adapted


def gather_for_dora(adapted: torch.nn.Module) -> None:
    """Have ZeRO-3 keep an adapted layer's weights gathered as long as DoRA needs them.

    DoRA reads the layer's weight beside calling the layer, so the whole adapter is made one unit of gathering. What
    a unit gathers for backward is let go when the gradient of its input is due: at once, and so too early, for an
    input that asks for none.
    """
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    set_z3_leaf_modules(adapted, list({type(layer) for layer in layers}))
    for layer in layers:
        layer.register_forward_pre_hook(ask_input_gradient)


def ask_input_gradient(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A hook before a layer's forward pass."""
    hidden, *rest = inputs
    if hidden.requires_grad or not torch.is_grad_enabled():
        return inputs
    return hidden.detach().requires_grad_(), *rest


def freeze(model: Phi3VForCausalLM, frozen: Iterable[str]) -> None:
    """Take parts of the model out of training; raises ConfigError where nothing would be left."""
    left = [part for part in PARTS if part not in set(frozen)]
    if not left:
        raise ConfigError("tune.freeze: all parts are frozen, which leaves nothing to train; take one out")
    set_trainable(model, left)
