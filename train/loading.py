"""A model to ask: from a run's checkpoint, from an exported folder, or from the local Hugging Face cache."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.manifest import Manifest as ShardManifest
from data.schema import UserError
from train.checkpoint import CheckpointError, Manifest, fingerprint_model, full_tensors, problem
from train.config import load as load_config
from train.config_schema import Config
from train.keeping import best, found, newest
from train.material import cached_snapshot, find_model, lacks, shards_folder
from train.merging import check_finite
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.adapter import CONFIG
from train.model.lora import add_lora, merge_lora
from train.score.facts import Origin

if TYPE_CHECKING:
    from peft import PeftModel

TASK_FILE = "training.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ModelError(UserError):
    """There is no model to ask at the place that was named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a model was trained to answer; an exported folder carries it as training.json."""

    question: str | None = None
    answer_template: str | None = None
    fields: dict[str, str]

    @classmethod
    def of(cls, manifest: ShardManifest) -> "Task":
        """The task that a folder of shards teaches."""
        return cls(question=manifest.question, answer_template=manifest.answer_template, fields=manifest.fields)

    @classmethod
    def load(cls, folder: Path) -> "Task":
        """A model folder's task; one without question or fields where the folder says nothing of it."""
        file = folder / TASK_FILE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else cls(fields={})

    def to_json(self) -> str:
        """The text of training.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with all that asking it takes."""

    model: Phi3VForCausalLM
    """In eval mode, adapters merged."""
    processor: Phi3VProcessor
    """Its num_crops and chat_template are those trained with."""
    task: Task
    folder: Path
    """The model folder; of a run the one its training started from."""
    origin: Origin | None = None
    """Of a run."""


def is_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (path / "config.yaml").is_file() and not (path / "config.json").is_file()


def choose_device() -> torch.device:
    """The GPU where there is one and DS_ACCELERATOR does not say otherwise, else the CPU."""
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    return torch.device("cuda" if on_gpu else "cpu")


def choose_checkpoint(run: Path, which: str = "best") -> Path:
    """A whole checkpoint of a run.

    which: "best" (of the lowest validation loss; the newest where none was measured), "newest", or a folder's path or
        name.
    Raises CheckpointError where there is none.
    """
    if which not in ("best", "newest"):
        folder = next((path for path in (Path(which), run / "checkpoints" / which) if path.is_dir()), None)
        if folder is None:
            names = ", ".join(path.name for path in found(run)) or "none"
            raise CheckpointError(f"--checkpoint {which}: no such checkpoint; {run} has: {names}")
        reason = problem(folder)
        if reason:
            raise CheckpointError(f"--checkpoint {which} is not whole: {reason}; take another one")
        return folder
    if which == "best":
        folders = found(run)
        for folder in best(folders, len(folders)):
            if problem(folder) is None:
                return folder
    latest = newest(run)
    if latest is None:
        raise CheckpointError(
            f"{run} has no whole checkpoint; train on until its first one (checkpoint.every_steps, or the run's end)"
        )
    return latest


def load_run(
    source: str | Path,
    checkpoint: str = "best",
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Loaded:
    """Load a model to ask it.

    source: a run's folder, a model folder in the published layout, or a hub name that is in the local cache.
    checkpoint: of a run, see choose_checkpoint.
    dtype: None for float32 on the CPU and bfloat16 on a GPU.
    Raises UserError where the model, its base or a whole checkpoint is not there, or weights are not finite.
    """
    device = device or choose_device()
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    path = Path(source).expanduser()
    if path.is_dir() and is_run(path):
        return _load_checkpoint(path, checkpoint, dtype, device)
    folder = path if path.is_dir() else cached_snapshot(str(source)) if str(source).count("/") == 1 else None
    if folder is None:
        raise ModelError(
            f"{source}: neither a run's folder, nor a model's, nor a name in the local Hugging Face cache; "
            "a run has config.yaml, a model folder config.json; get a hub model by: hf download NAME"
        )
    missing = lacks(folder)
    if missing and (folder / CONFIG).is_file():
        raise ModelError(
            f"{folder}: adapters alone, without the model that they belong to; name the run that they are from, or "
            "export it without --adapter"
        )
    if missing:
        raise ModelError(f"{folder}: no run (config.yaml) and, as a model folder, it lacks {', '.join(missing)}")
    model = _from_folder(folder, dtype).to(device)
    return Loaded(
        model=model.eval(), processor=Phi3VProcessor.from_pretrained(folder), task=Task.load(folder), folder=folder
    )


def trained_from(run: Path, which: str) -> tuple[Config, Path, Path]:
    """A run's settings, the checkpoint asked for, and the model folder that training started from.

    Raises UserError where there is no whole checkpoint, or the folder is not the model any more that it was.
    """
    config = load_config(run / "config.yaml")
    chosen = choose_checkpoint(run, which)
    saved = Manifest.load(chosen)
    folder = find_model(config.model.path, fetch=True)
    assert folder is not None
    if fingerprint_model(folder) != saved.base["fingerprint"]:
        raise ModelError(
            f"{folder} is not the model any more that {run} was trained from (that was {saved.base['path']}); "
            "bring that one back, or work on the machine that has it"
        )
    return config, chosen, folder


def _load_checkpoint(run: Path, which: str, dtype: torch.dtype, device: torch.device) -> Loaded:
    config, chosen, folder = trained_from(run, which)
    shards = ShardManifest.load(shards_folder(config))
    # Adapters are merged in float32: in bfloat16 the sum would be rounded twice.
    adapted = config.tune.method != "full"
    model = _from_folder(folder, torch.float32 if adapted else dtype)
    if adapted:
        model = merge_lora(_with_adapters(model, config, chosen))
    else:
        _copy_tensors(model, chosen)
    return Loaded(
        model=model.to(device=device, dtype=dtype).eval(),
        processor=processor_of(config, folder, shards),
        task=Task.of(shards),
        folder=folder,
        origin=Origin(run=run, checkpoint=chosen, config=config, shards=shards),
    )


def processor_of(config: Config, folder: Path, shards: ShardManifest) -> Phi3VProcessor:
    """The base's processor with num_crops and chat template as trained with."""
    processor = Phi3VProcessor.from_pretrained(folder, num_crops=config.model.num_crops)
    processor.chat_template = shards.chat_template["template"]
    return processor


def _from_folder(folder: Path, dtype: torch.dtype) -> Phi3VForCausalLM:
    try:
        return Phi3VForCausalLM.from_pretrained(folder, dtype=dtype)
    except ValueError as error:
        raise ModelError(str(error)) from error


def _with_adapters(model: Phi3VForCausalLM, config: Config, checkpoint: Path) -> "PeftModel":
    # The checkpoint holds the adapters' values, whatever they started with.
    adapted, _ = add_lora(model, **config.tune.lora.model_dump(exclude={"adapter"}))
    _copy_tensors(adapted, checkpoint)
    return adapted


@torch.no_grad()
def _copy_tensors(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's parameters into the model; raises CheckpointError for others, and for NaN or infinity."""
    parameters = dict(model.named_parameters())
    for name, tensor in full_tensors(checkpoint):
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"{checkpoint}: {name} {list(tensor.shape)} is not a parameter of this model")
        check_finite(checkpoint, name, tensor)
        parameters[name].copy_(tensor)
