"""The settings of a training run: every section, its keys, their types, defaults and bounds."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Part = Literal["vision", "projection", "text", "embeddings", "head"]
LoraPart = Literal["text_attention", "text_mlp", "projection", "vision"]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A group of keys; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Folder of the run under `folder`; none: the name of the configuration file."""
    folder: str = "runs"
    seed: NotNegative = 0
    stall_minutes: Annotated[float, Field(gt=0)] = 10.0
    """A rank that stays in one phase of a step for longer ends the run; waiting for data has its own limit."""
    deterministic: bool = False
    """On a GPU: only kernels that give the same bits each time, so that a resumed run equals a straight one; slower. A
    CPU's always do."""


class ModelSection(Section):
    path: str = "microsoft/Phi-3-vision-128k-instruct"
    """A folder in Hugging Face's form, or a name on its hub."""
    num_crops: Positive | None = None
    """Most crops of a picture; none: as the model's preprocessor_config.json says."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """What forward and backward compute in; the optimizer keeps fp32 weights in all. fp16: the loss is scaled."""
    attention: Literal["auto", "flash", "sdpa", "eager"] = "auto"
    checkpoint_decoder: bool = True
    """Recompute the decoder's activations in backward: less memory, about a third more time."""
    checkpoint_vision: bool = True
    checkpoint_offload: bool = False
    """Keep what recomputing starts from, each layer's input, in the host's memory; needs one of the two above."""
    crops_per_chunk: Positive = 16
    """Crops that go through the vision tower at once."""
    labels_per_chunk: Positive = 1024
    """Supervised tokens whose logits exist at once."""
    liger: bool = False
    """Liger's fused kernels in the decoder's layers: norms, gate of the MLP, rotation. Needs a GPU and liger-kernel."""
    compile: bool = False
    """Kernels made by torch.compile of norms, gate, rotation, the tower's activation and the loss; the first step takes
    longer. With liger: of what Liger has no kernel for."""

    @model_validator(mode="after")
    def check_offload(self) -> "ModelSection":
        if self.checkpoint_offload and not (self.checkpoint_decoder or self.checkpoint_vision):
            raise ValueError(
                "model.checkpoint_offload moves what checkpointing keeps; set model.checkpoint_decoder or "
                "model.checkpoint_vision too"
            )
        return self


class LoraSection(Section):
    rank: Positive = 32
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    parts: list[LoraPart] = ["text_attention", "text_mlp"]
    rslora: bool = False
    """Multiply by `alpha / √rank` instead, which keeps large ranks from learning less."""
    dora: bool = False
    """Train a magnitude for each output beside the adapter: nearer to full fine-tuning, and slower."""
    adapter: str | None = None
    """Folder of an adapter in peft's form to go on from; rank, alpha, parts, rslora and dora must be its own."""


class TuneSection(Section):
    method: Literal["full", "lora", "qlora"] = "full"
    freeze: list[Part] = []
    """Parts that full fine-tuning leaves as they are."""
    lora: LoraSection = LoraSection()

    @model_validator(mode="after")
    def check_freeze(self) -> "TuneSection":
        if self.method != "full" and self.freeze:
            raise ValueError(
                "tune.freeze goes with method: full; LoRA trains what tune.lora.parts names and nothing else"
            )
        return self


class ShardsSection(Section):
    path: str
    weight: Annotated[float, Field(gt=0)] | None = None


class DataSection(Section):
    shards: str | Annotated[list[ShardsSection], Field(min_length=1)] = "shards"
    """Folder of the shards, or an address: `s3://…`, `https://…`; or a list of `{path: …, weight: …}` to mix."""
    mix_by: Literal["samples", "tokens"] = "samples"
    """What the weights of mixed shards are shares of."""
    mix_until: Literal["first", "last"] = "last"
    """With weights, an epoch ends when the first of the sets is used up, or the last (smaller ones are repeated)."""
    train: str = "train"
    """Name of the split to train on."""
    validation: str = "validation"
    """Name of the split whose loss is measured during training; absent shards of it: none is measured."""
    pack_length: Positive = 4096
    """Tokens of a pack: samples are put together up to this length."""
    window: Positive = 4096
    """Samples that packing chooses among; more fills better and mixes wider."""
    over_long: Literal["error", "skip", "fewer_crops"] = "error"
    """What becomes of a sample longer than a pack; fewer_crops: its pictures are cut into as many as fit."""
    last_batch: Literal["drop", "wrap", "short"] = "short"
    """What becomes of the packs at the end of an epoch that fill no global batch."""
    workers: NotNegative = 2
    """Processes of each rank that read, decode and cut pictures."""
    cache: str | None = None
    """Folder for counted lengths; none: .cache beside the run folders."""
    shard_cache: str | None = None
    """Folder on a disk of each node for shards of an address; none: one beside other temporary files."""
    cache_gb: Annotated[float, Field(ge=0)] = 50.0
    """What that folder may take; what was not used for longest goes first."""
    max_bad: NotNegative = 100
    """Most samples that may turn out damaged or missing while they are read; one more ends the run."""
    patience_minutes: Annotated[float, Field(ge=0, le=25)] = 20.0
    """How long an outage of the storage is sat out before the run ends; other ranks wait for half an hour."""

    @property
    def shard_sets(self) -> list[ShardsSection]:
        """What is trained on, one set or several."""
        return [ShardsSection(path=self.shards)] if isinstance(self.shards, str) else self.shards


class BatchSection(Section):
    global_batch_packs: Positive = 16
    """Packs of one optimizer step, over all ranks."""


class OptimSection(Section):
    lr: Annotated[float, Field(gt=0)] = 2e-5
    lr_by_part: dict[Part, Annotated[float, Field(gt=0)]] = {}
    """Peak learning rates of parts that shall not have `lr`; warm-up and schedule are the same."""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """For matrices; norms, biases and other vectors are never decayed."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NotNegative = 0
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of `lr` that cosine and linear end at."""
    max_skipped: NotNegative = 10
    """Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run."""
    loss_scale: Annotated[float, Field(gt=0)] | None = None
    """Of fp16: what the loss is multiplied by; none: as much as the gradient allows, found out while training."""
    loss_scale_power: Annotated[int, Field(ge=0, le=32)] = 16
    """That search begins at 2 to this power; each gradient that overflows after the first halves it."""
    loss_scale_window: Positive = 1000
    """Steps without an overflow after which it doubles."""


class StopSection(Section):
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training split; part of one is allowed."""
    steps: Positive | None = None
    """Optimizer steps; with `epochs` too, whichever comes first."""
    tokens: Positive | None = None
    """Tokens of the packs, pictures' included; ends with the step that reaches them, or before as above."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of steps, evaluations and saves, over all starts; ends a run before its schedule does."""
    patience: Positive | None = None
    """Evaluations in a row without a lower validation loss; ends a run before its schedule does."""

    @model_validator(mode="after")
    def check_some(self) -> "StopSection":
        if self.epochs is None and self.steps is None and self.tokens is None:
            raise ValueError(
                "set stop.epochs, stop.steps or stop.tokens: the schedule of the rate leads there; stop.hours and "
                "stop.patience may end a run before"
            )
        return self


class EvaluateSection(Section):
    every_steps: NotNegative = 0
    """Steps between two measurements of the validation loss; 0: only at the end."""
    packs: Positive | None = None
    """Most packs measured; none: the whole split."""
    answers: NotNegative = 0
    """Samples of the validation split, its first ones, that the model answers at each measurement; 0: none. Their
    scores stand with the loss. Weights are then whole on each GPU for a while."""
    answer_tokens: Positive = 96
    """Most tokens of an answer."""
    answer_batch: Positive = 8
    """Samples that a rank answers at once."""


class CheckpointSection(Section):
    every_steps: NotNegative = 500
    """Steps between two checkpoints; 0: only at the end."""
    keep_last: Positive = 2
    """Newest checkpoints kept."""
    keep_best: NotNegative = 1
    """Checkpoints kept besides, of the least validation loss."""
    background: bool = True
    """Write from a copy in the host's memory while training goes on; without, training waits for the disk."""


class LoggingSection(Section):
    every_steps: Positive = 1
    """Steps between two lines on the console; metrics.jsonl has every step."""


class WandbSection(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE if set, online where a key is found, else offline."""
    project: str = "phi3-vision"
    entity: str | None = None
    tags: list[str] = []
    artifact_gb: Annotated[float, Field(ge=0)] = 2.0
    """The best checkpoint is an artifact of the run: uploaded up to so many GB, by path and hashes above."""


class Config(Section):
    """One run's settings."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    tune: TuneSection = TuneSection()
    data: DataSection = DataSection()
    batch: BatchSection = BatchSection()
    optim: OptimSection = OptimSection()
    stop: StopSection = StopSection(epochs=2.0)
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    wandb: WandbSection = WandbSection()
    deepspeed: str = "ds_configs/zero3.json"
    """DeepSpeed's own file: ZeRO stage, buckets, offload, communication."""

    @model_validator(mode="after")
    def check_patience(self) -> "Config":
        if self.stop.patience is not None and self.evaluate.every_steps == 0:
            raise ValueError("stop.patience counts evaluations, and evaluate.every_steps: 0 makes none before the end")
        return self

    @model_validator(mode="after")
    def check_loss_scale(self) -> "Config":
        if self.optim.loss_scale is not None and self.model.precision != "fp16":
            raise ValueError("optim.loss_scale goes with model.precision: fp16; other precisions need none")
        return self
