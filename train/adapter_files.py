"""A run's adapters in peft's format, straight from a checkpoint: no base model is loaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from train.config_schema import Config
from train.merging import TrainedTensors
from train.model.adapter import PREFIX, WEIGHTS, adapted_modules
from train.model.configuration import Phi3VConfig


def write_adapter(folder: Path, checkpoint: Path, config: Config, base: Path, split: bool) -> None:
    """Write adapter_model.safetensors (float32) and adapter_config.json.

    config: of the run. base: folder of the model that the adapters are for.
    split: give the parts of fused layers adapters of their own (q_proj, k_proj, v_proj in place of qkv_proj), for
        servers that know only those: each has the same A and its own rows of B, so the model is the same.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    trained = TrainedTensors(checkpoint)
    tensors = {_saved_name(name): trained.read(name) for name in trained.shapes if ".lora_" in name}
    if split:
        tensors = split_fused(tensors, Phi3VConfig.from_pretrained(base))
    lora = config.tune.lora
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(adapted_modules(tensors)),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model.path,
        inference_mode=True,
    )
    settings.save_pretrained(str(folder))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _saved_name(name: str) -> str:
    """A parameter's name in a file of peft's: without the adapter's name, a magnitude without `.weight`."""
    name = name.replace(".default", "")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def split_fused(tensors: Mapping[str, Tensor], config: Phi3VConfig) -> dict[str, Tensor]:
    """The adapters of qkv_proj and gate_up_proj as those of the layers that they were fused from.

    tensors: names as peft saves them; A [rank, in], B [out, rank], a DoRA magnitude [out].
    """
    of_kind = config.num_key_value_heads * config.head_dim
    sizes = {
        "qkv_proj": {"q_proj": config.num_attention_heads * config.head_dim, "k_proj": of_kind, "v_proj": of_kind},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".lora_")
        parent, _, last = layer.rpartition(".")
        # The tower's layers have these names of their own.
        if last not in sizes or not name.startswith(f"{PREFIX}model.layers."):
            found[name] = tensor
            continue
        parts = sizes[last]
        pieces = [tensor] * len(parts) if rest.startswith("A") else torch.split(tensor, list(parts.values()))
        for part, piece in zip(parts, pieces, strict=True):
            found[f"{parent}.{part}.lora_{rest}"] = piece.clone()
    return found
