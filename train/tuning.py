"""What is trained of the model, as the settings say: all of it, some parts, or adapters, beside a 4-bit base or not."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from deepspeed.utils import set_z3_leaf_modules

from train.config import ConfigError
from train.config_schema import Config
from train.model import Phi3VForCausalLM
from train.model.lora import PARTS, add_lora, check_adapter, set_trainable

# Kept as they are under QLoRA: the tower, whose 4-bit features would be blurred for every layer behind, and the head.
NOT_QUANTIZED = ["model.vision_embed_tokens", "lm_head"]


def check_tuning(config: Config, zero_stage: int) -> None:
    """Raise ConfigError for a way of tuning that cannot be had; nothing is loaded for it.

    zero_stage: of DeepSpeed's file.
    """
    if config.tune.method == "qlora":
        check_quantized(zero_stage)
    lora = config.tune.lora
    if config.tune.method != "full" and lora.adapter is not None:
        try:
            check_adapter(**lora.model_dump(include={"rank", "alpha", "parts", "rslora", "dora"}), folder=lora.adapter)
        except ValueError as error:
            raise ConfigError(f"tune.lora.adapter: {error}") from error


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
