"""What a rank's memory depends on: the model, how it is trained, how DeepSpeed lays it out, what a pack holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.config_schema import Config, LoraSection
from train.estimate.sizes import ModelSizes, Tensor, adapters, tensors

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
NF4_BYTES = 0.5 + 0.127 / 8
"""A 4-bit weight with its share of the block scales, doubly quantised (arXiv 2305.14314, section 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """What the JSON's `zero_optimization` says of memory; defaults are DeepSpeed 0.19.8's."""

    stage: int
    reduce_bucket: int = 500_000_000
    prefetch: int = 50_000_000
    persistence: int = 100_000
    max_live: int = 1_000_000_000
    max_reuse: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    allgather_bucket: int = 500_000_000
    overlaps: bool = False
    contiguous: bool = True
    keeps_inputs: bool = True
    """Its own linear layers (`memory_efficient_linear`), which keep their input also where the weight is frozen."""
    leaf_layers: bool = False
    offloads_weights: bool = False
    offloads_optimizer: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Zero":
        """From a checked `zero_optimization`."""
        names = {
            "reduce_bucket": "reduce_bucket_size",
            "prefetch": "stage3_prefetch_bucket_size",
            "persistence": "stage3_param_persistence_threshold",
            "max_live": "stage3_max_live_parameters",
            "max_reuse": "stage3_max_reuse_distance",
            "sub_group": "sub_group_size",
            "allgather_bucket": "allgather_bucket_size",
        }
        given: dict[str, Any] = {name: int(values[key]) for name, key in names.items() if key in values}
        stage = int(values["stage"])
        offload: dict[str, Any] = {
            name: (values.get(key) or {}).get("device", "none") != "none"
            for name, key in (("offloads_weights", "offload_param"), ("offloads_optimizer", "offload_optimizer"))
        }
        return cls(
            stage=stage,
            overlaps=bool(values.get("overlap_comm", stage == 3)),
            contiguous=bool(values.get("contiguous_gradients", True)),
            keeps_inputs=stage == 3 and bool(values.get("memory_efficient_linear", True)),
            leaf_layers=bool((values.get("leaf_module") or {}).get("classes")),
            **given,
            **offload,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLoad:
    """The fullest pack of a training."""

    tokens: int
    labels: int
    crops: int
    """Through the vision tower, global views included."""
    pictures: int
    image_tokens: int
    crop_chunks: int
    label_chunks: int
    longest: int
    """Tokens of its longest sample."""
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A training on so many ranks, as far as memory goes."""

    sizes: ModelSizes
    zero: Zero
    ranks: int
    precision: str = "bf16"
    method: str = "full"
    freeze: tuple[str, ...] = ()
    lora: LoraSection | None = None
    own_rates: tuple[str, ...] = ()
    """Parts with a learning rate of their own, which are groups of their own in the optimizer."""
    attention: str = "flash"
    checkpoint_decoder: bool = True
    checkpoint_vision: bool = True
    checkpoint_offload: bool = False
    copies_saves: bool = True
    """Checkpoints are written from a copy in the host's memory (`checkpoint.background`)."""
    answer_batch: int = 0
    """Samples that a rank answers at once where the validation loss is measured (`evaluate.answers`); 0: none."""
    answer_tokens: int = 0
    """Most tokens of an answer."""
    on_cpu: bool = False
    """Ranks on the CPU over gloo, which copies what it sends and where memory counts from its first use."""

    @classmethod
    def of(
        cls, config: Config, settings: Mapping[str, Any], sizes: ModelSizes, ranks: int, on_cpu: bool = False
    ) -> "Setup":
        """From a run's configuration and DeepSpeed's checked JSON."""
        attention = config.model.attention
        if attention == "auto":
            attention = "sdpa" if on_cpu or config.model.precision == "fp32" else "flash"
        return cls(
            sizes=sizes,
            zero=Zero.of(settings["zero_optimization"]),
            ranks=ranks,
            precision=config.model.precision,
            method=config.tune.method,
            freeze=tuple(config.tune.freeze),
            lora=config.tune.lora if config.tune.method != "full" else None,
            own_rates=tuple(sorted(config.optim.lr_by_part)),
            attention=attention,
            checkpoint_decoder=config.model.checkpoint_decoder,
            checkpoint_vision=config.model.checkpoint_vision,
            checkpoint_offload=config.model.checkpoint_offload,
            copies_saves=config.checkpoint.background,
            answer_batch=min(config.evaluate.answer_batch, config.evaluate.answers),
            answer_tokens=config.evaluate.answer_tokens,
            on_cpu=on_cpu,
        )

    @property
    def value(self) -> int:
        """Bytes of a weight, a gradient, an activation."""
        return VALUE_BYTES[self.precision]

    def trains(self, tensor: Tensor) -> bool:
        """Whether a tensor gets a gradient."""
        if tensor.adapter:
            return True
        return self.method == "full" and tensor.used and tensor.part not in self.freeze

    def all_tensors(self) -> list[Tensor]:
        """The model's, adapters behind the weights they sit on."""
        found = []
        for tensor in tensors(self.sizes):
            found.append(tensor)
            if self.lora is not None:
                found += adapters(tensor, self.lora)
        return found

    def weight_bytes(self, tensor: Tensor) -> float:
        """Bytes of one value of a weight as it is kept; 4-bit ones of the decoder's layers under QLoRA."""
        quantized = self.method == "qlora" and tensor.lora_part in ("text_attention", "text_mlp")
        return NF4_BYTES if quantized else self.value

    def groups(self) -> list[list[Tensor]]:
        """The optimizer's groups, as train.optim makes them: matrices, vectors, and those of parts with own rates."""
        found: dict[tuple[str | None, bool], list[Tensor]] = {}
        for tensor in self.all_tensors():
            if self.trains(tensor):
                part = tensor.part if tensor.part in self.own_rates else None
                found.setdefault((part, tensor.is_matrix), []).append(tensor)
        return list(found.values())
