"""The model under DeepSpeed: loaded partitioned, packs forward and backward, optimizer steps, saved and restored."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers

from train import zero_state
from train.checkpoint import KINDS, CheckpointError, Manifest, Reader, Slice
from train.config import ConfigError
from train.config_schema import Config
from train.distributed import World
from train.flops import Arithmetic, peak_flops
from train.model import Phi3VForCausalLM
from train.model.attention import resolve_attention
from train.model.kernels import choose_kernels, use_kernels
from train.model.lora import parts_of
from train.model.transfer import moved
from train.model.weights import CheckpointError as WeightsError
from train.optim import build_optimizer, set_rates
from train.pipeline.batch import Batch
from train.precision import LossScale
from train.probe import probe_batch
from train.tuning import loading_options, prepare, several_calls, tower_once

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How far a probe's loss may be off where ranks, versions or machine differ from those of the save, relative.
PROBE_TOLERANCE = {"fp32": 1e-4}
PROBE_TOLERANCE_OTHERWISE = 2e-2


def load_model(config: Config, folder: Path, deepspeed_config: dict[str, Any], world: World) -> torch.nn.Module:
    """The base model, each rank holding its share where ZeRO-3 is on, with adapters or frozen parts as configured.

    folder: a model in the published layout.
    Raises ConfigError, on every rank, where the folder's weights are not whole on one, the attention cannot be had,
    nothing is left to train.
    """
    dtype = DTYPES[config.model.precision]
    try:
        attention = resolve_attention(config.model.attention, world.device, dtype)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    transformers.utils.logging.disable_progress_bar()
    # transformers partitions while it loads, and peft gathers what it must see, as long as this object lives.
    partitioned = deepspeed_config["zero_optimization"]["stage"] == 3
    keep = transformers.integrations.HfDeepSpeedConfig(deepspeed_config) if partitioned else None

    def load() -> Phi3VForCausalLM:
        try:
            return Phi3VForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, **loading_options(config, dtype)
            )
        except WeightsError as error:
            raise ConfigError(f"model.path: {error}") from error

    # Every rank reads its own share from the files, so one alone may find them damaged.
    model = world.agree(load)
    settings = config.model
    if settings.liger or settings.compile:
        use_kernels(model, choose_kernels(liger=settings.liger, compiled=settings.compile))
    model.set_checkpointing(
        decoder=settings.checkpoint_decoder, vision=settings.checkpoint_vision, offload=settings.checkpoint_offload
    )
    tuned = prepare(model, config)
    del keep
    return tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSize:
    """Parameters of one part of the model."""

    trained: int
    total: int


def part_sizes(model: torch.nn.Module) -> dict[str, PartSize]:
    """Parameters by part: vision, projection, text, embeddings, head; adapters count with the part they sit on."""
    sizes: dict[str, PartSize] = {}
    for name, parameter in model.named_parameters():
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        packed = getattr(parameter, "quant_state", None)
        if packed is not None:  # bitsandbytes keeps two values in a byte
            count = packed.shape.numel()
        old = sizes.get(parts_of(name), PartSize(trained=0, total=0))
        trained = old.trained + count * parameter.requires_grad
        sizes[parts_of(name)] = replace(old, trained=trained, total=old.total + count)
    return sizes


def pack_seed(seed: int, step: int, pack: int) -> int:
    """What torch is seeded with before a pack: the same on whichever rank it lies, fresh or resumed."""
    digest = hashlib.blake2b(f"{seed}/{step}/{pack}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Engine:
    """A model in training, spread over the ranks. All methods but `inputs` are collective."""

    def __init__(self, model: torch.nn.Module, config: Config, deepspeed_config: dict[str, Any], world: World) -> None:
        self.config = config
        self.world = world
        optimizer = build_optimizer(model, config.optim)
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config, dist_init_required=False
        )
        # As loaded it answers: its layers would neither drop out nor recompute their activations in backward.
        self.deepspeed.train()
        self.zero = self.deepspeed.optimizer
        self.zero_stage = zero_state.zero_stage(self.zero)
        self.loss_scale = LossScale(self.zero)
        self.tower_once = tower_once(deepspeed_config["zero_optimization"])
        if self.zero_stage == 2:
            # In fp32 and without clipping DeepSpeed would put a gradient that is not finite into the weights.
            self.zero.check_grad_overflow = True
        self.attention = resolve_attention(config.model.attention, world.device, DTYPES[config.model.precision])
        self.parameters = zero_state.trained_parameters(self.deepspeed.module)
        made = getattr(model, "config")  # noqa: B009 (PEFT models forward it)
        self.crop_size = made.crop_size
        sizes = part_sizes(self.deepspeed.module)
        self.arithmetic = Arithmetic.of(
            {part: size.trained for part, size in sizes.items()},
            {part: size.total for part, size in sizes.items()},
            made,
        )
        self.probe_pack = probe_batch(made.vocab_size, made.crop_size, made.tokens_per_side)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """A pack as the model's arguments; pictures and positions on its device."""
        device = self.world.device
        pictures = {}
        if len(batch.grids):
            pictures = {
                "pixel_values": moved(torch.from_numpy(batch.crops), device),
                "image_sizes": torch.from_numpy(batch.grids * self.crop_size),
            }
        return {
            # The model reads them on the CPU to place pictures and labels: left there, it never waits for the device.
            "input_ids": torch.from_numpy(batch.input_ids)[None],
            "labels": torch.from_numpy(batch.labels)[None],
            "cu_seqlens": batch.cu_seqlens.tolist(),
            "position_ids": moved(torch.from_numpy(batch.position_ids), device)[None],
            "crop_chunks": batch.crop_chunks,
            "label_chunks": batch.label_chunks,
            "loss_reduction": "sum",
            "return_logits": False,
            "use_cache": False,
            **pictures,
        }

    def train_pack(
        self, batch: Batch, step: int, scale: float, mark: Callable[[str], object] = lambda phase: None
    ) -> torch.Tensor:
        """Forward and backward of one pack.

        step: number of the optimizer step it belongs to, for its random numbers.
        scale: what its summed loss is multiplied by (see loss.backward_scale).
        mark: told `forward` and `backward` when they begin.
        Returns the summed loss of its supervised tokens, float32 scalar, on the device.
        """
        if batch.crop_chunks > 1 and self.tower_once:  # on all ranks alike: they make as many calls
            raise several_calls(self.config)
        torch.manual_seed(pack_seed(self.config.run.seed, step, batch.number))
        mark("forward")
        loss = self.deepspeed(**self.inputs(batch)).loss
        mark("backward")
        # A loss that is not finite could still have a finite gradient: then this makes the gradient tell of it.
        bare = loss.detach()
        told = torch.where(torch.isfinite(bare), torch.ones_like(bare), torch.full_like(bare, math.nan))
        self.deepspeed.backward(loss * (scale * told), scale_wrt_gas=False)
        return loss.detach()

    def step(self, rate: float) -> float | None:
        """Update the weights by what was accumulated, at a learning rate (of the parts without one of their own).

        Returns the gradient's norm before clipping; None where it was not finite and all ranks skipped the update.
        """
        set_rates(self.zero.param_groups, rate)
        self.deepspeed.step()
        self.loss_scale.end_step()
        if not self.deepspeed.was_step_applied():
            return None
        return float(self.deepspeed.get_global_grad_norm())

    @torch.no_grad()
    def measure_pack(self, batch: Batch) -> torch.Tensor:
        """The summed loss of a pack, with dropout off and nothing kept for backward."""
        self.deepspeed.eval()
        try:
            return self.deepspeed(**self.inputs(batch)).loss
        finally:
            self.deepspeed.train()

    def slices(self) -> Iterable[Slice]:
        """What this rank holds of weights and moments."""
        if zero_state.adam_step(self.zero) == 0:  # every step so far was skipped
            zero_state.make_states(self.zero)
        return zero_state.local_slices(self.zero, self.parameters, self.world.rank)

    def manifest(self, *, step: int, plan: str, base: dict[str, str], validation: float | None) -> Manifest:
        """What a checkpoint of the weights as they are says of itself, without its files; collective.

        plan: fingerprint of the order of training. base: path and fingerprint of the model trained from.
        validation: loss measured with these weights.
        """
        return Manifest(
            step=step,
            adam_step=zero_state.adam_step(self.zero),
            world_size=self.world.size,
            plan=plan,
            config=self.config.model_dump(),
            base=base,
            shapes=self.shapes(),
            files={},
            validation_loss=validation,
            versions={package.__name__: package.__version__ for package in (torch, deepspeed, transformers)},
            probe={"loss": self.probe(), "under": self.surroundings()},
            loss_scale=self.loss_scale.state(),
        )

    def peak_flops(self) -> float | None:
        """Operations a second of all ranks' devices together; None where it is not known."""
        if self.world.device.type != "cuda":
            return None
        peak = peak_flops(torch.cuda.get_device_name(self.world.device), self.config.model.precision)
        return None if peak is None else self.world.size * peak

    def shapes(self) -> dict[str, list[int]]:
        """Of every trained parameter, whole."""
        return {name: zero_state.full_shape(parameter) for name, parameter in self.parameters}

    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes, over all ranks: three fp32 numbers a trained parameter."""
        return 4 * len(KINDS) * sum(math.prod(shape) for shape in self.shapes().values())

    def probe(self) -> float | None:
        """The summed loss of the probe batch, None where it is not finite; every rank computes the same."""
        loss = float(self.measure_pack(self.probe_pack))
        return loss if math.isfinite(loss) else None

    def kernels(self) -> list[str]:
        """Operations of the model that are others than the plain ones."""
        tune = self.config.tune
        joined = ["joined adapters"] if tune.method != "full" and not tune.lora.dora else []
        return [name for name in ("liger", "compile") if getattr(self.config.model, name)] + joined

    def surroundings(self) -> dict[str, Any]:
        """What a loss to the last bit depends on beside weights and batch."""
        device = self.world.device
        on_gpu = device.type == "cuda"
        return {
            "ranks": self.world.size,
            "device": torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
            "threads": None if on_gpu else torch.get_num_threads(),
            "stage": self.zero_stage,
            "attention": self.attention,
            "kernels": self.kernels(),
            "precision": self.config.model.precision,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "deepspeed": deepspeed.__version__,
        }

    def check_probe(self, folder: Path, probe: Mapping[str, Any]) -> None:
        """Raise CheckpointError where the weights loaded do not give the loss they gave when they were saved."""
        now, was = self.probe(), probe["loss"]
        same = self.surroundings() == probe["under"]
        tolerance = 0.0 if same else PROBE_TOLERANCE.get(self.config.model.precision, PROBE_TOLERANCE_OTHERWISE)
        if now == was or (now is not None and was is not None and abs(now - was) <= tolerance * abs(was)):
            return
        raise CheckpointError(
            f"{folder}: the probe batch gave a loss of {was!r} when this was saved and gives {now!r} now "
            f"(allowed: {f'{tolerance:g} relative' if tolerance else 'no difference, ranks and versions are equal'}); "
            "the model trained from, the program or the machine is not what it was; see to that, or move this "
            "checkpoint out of the run to go on from an earlier one"
        )

    def load(self, folder: Path) -> Manifest:
        """Go back to a checkpoint, of any number of ranks; raises CheckpointError where it does not fit the model."""
        reader = self.world.agree(lambda: Reader(folder))
        shapes = self.shapes()
        if shapes != reader.manifest.shapes:
            missing = sorted(set(shapes) - set(reader.manifest.shapes))
            more = sorted(set(reader.manifest.shapes) - set(shapes))
            raise CheckpointError(
                f"{folder}: its parameters are not the ones trained here (lacks {missing[:3]}, has {more[:3]} more); "
                "is model.path the model this run was started from?"
            )
        zero_state.install(self.zero, self.parameters, reader, self.world.rank)
        if reader.manifest.loss_scale is not None:
            self.loss_scale.restore(reader.manifest.loss_scale)
        if reader.manifest.probe is not None:
            self.check_probe(folder, reader.manifest.probe)
        return reader.manifest
