"""The published architecture at full size with random weights, made on the device, and packs to train it on."""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data.geometry import image_tokens
from train.config_schema import Config
from train.deepspeed_config import compose, read
from train.distributed import World, bring_together, find_place
from train.engine import DTYPES, Engine
from train.estimate.memory import estimate
from train.estimate.setup import PackLoad, Setup
from train.estimate.sizes import ModelSizes
from train.flops import seen_crops
from train.loss import backward_scale, count_labels
from train.model.attention import resolve_attention
from train.model.configuration import Phi3VConfig
from train.model.crops import tower_crops
from train.model.kernels import choose_kernels, use_kernels
from train.model.modeling import Phi3VForCausalLM
from train.pipeline.batch import IGNORED, Batch, Encoded, assemble
from train.tuning import prepare

QUESTION, ANSWER = 16, 32
"""Tokens of a sample before its picture, and supervised ones behind it."""
GRIDS = {1: (1, 1), 4: (2, 2), 16: (4, 4)}


def full_config() -> Phi3VConfig:
    """Phi-3-Vision-128K-Instruct: 32 decoder layers of 3,072, a tower of 24 layers of 1,024, 131,072 places."""
    pairs = 48
    long_factor = [round(64 ** (pair / (pairs - 1)), 4) for pair in range(pairs)]
    rope = {"type": "su", "short_factor": [1.0] * pairs, "long_factor": long_factor}
    return Phi3VConfig(rope_scaling=rope, max_position_embeddings=131072, original_max_position_embeddings=4096)


def small_config() -> Phi3VConfig:
    """A small model of the same kinds of layers, to try these programs where there is no GPU."""
    from tests.factories.small_models import small_config as made

    return made()


def random_model(architecture: Phi3VConfig, device: torch.device, dtype: torch.dtype) -> Phi3VForCausalLM:
    """A model of random weights, drawn where it will stay."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Phi3VForCausalLM(architecture)
    finally:
        torch.set_default_dtype(before)
    return model


def alone() -> World:
    """This process as a world of one rank, on the GPU where there is one."""
    return bring_together(find_place(os.environ), os.environ)


def make_engine(architecture: Phi3VConfig, config: Config, world: World) -> Engine:
    """The trainer's engine around a random model, as `train.engine.load_model` makes it from a folder.

    Without the partitioning of loading: one rank holds all anyway.
    """
    settings = config.model
    dtype = DTYPES[settings.precision]
    model = random_model(architecture, world.device, dtype)
    model.set_attn_implementation(resolve_attention(settings.attention, world.device, dtype))
    if settings.liger or settings.compile:
        use_kernels(model, choose_kernels(liger=settings.liger, compiled=settings.compile))
    model.set_checkpointing(
        decoder=settings.checkpoint_decoder, vision=settings.checkpoint_vision, offload=settings.checkpoint_offload
    )
    return Engine(prepare(model, config), config, compose(config, read(config), world.size), world)


def inner_model(engine: Engine) -> Phi3VForCausalLM:
    """The model inside an engine, without adapters around it."""
    model = engine.deepspeed.module
    inner: Phi3VForCausalLM = model if isinstance(model, Phi3VForCausalLM) else model.get_base_model()
    return inner


def samples(architecture: Phi3VConfig, num_crops: int, tokens: int, whole: bool = False) -> list[Encoded]:
    """Samples of a question, a picture of `num_crops` crops and an answer, that fill a pack of so many tokens.

    whole: one sample of several pictures. The last one takes what is left as words. Raises ValueError where not even
    one picture fits.
    """
    draw = np.random.default_rng(tokens * 100 + num_crops)
    rows, columns = GRIDS[num_crops]
    picture = image_tokens(rows, columns, architecture.tokens_per_side)
    one = QUESTION + picture + ANSWER
    if one > tokens:
        raise ValueError(f"a picture of {num_crops} crops makes a sample of {one} tokens, and a pack has {tokens}")
    count = (tokens - QUESTION - ANSWER) // picture if whole else tokens // one
    pictures = [count] if whole else [1] * count
    lengths = [sum_of * picture + QUESTION + ANSWER for sum_of in pictures]
    lengths[-1] += tokens - sum(lengths)
    size = architecture.crop_size
    made = []
    for number, (several, length) in enumerate(zip(pictures, lengths, strict=True)):
        words = draw.integers(3, architecture.vocab_size, length - several * picture)
        shown = np.repeat(-np.arange(1, several + 1), picture)
        ids = np.concatenate([words[:-ANSWER], shown, words[-ANSWER:]]).astype(np.int64)
        labels = np.full(length, IGNORED, np.int64)
        labels[-ANSWER:] = ids[-ANSWER:]
        crops = draw.integers(0, 256, (several * rows * columns, 3, size, size), dtype=np.uint8)
        grids = np.array([(rows, columns)] * several, np.int64)
        made.append(Encoded(key=f"{number}", input_ids=ids, labels=labels, crops=crops, grids=grids))
    return made


def pack_of(config: Config, chosen: Sequence[Encoded]) -> Batch:
    """The samples as one pack."""
    seen = sum(tower_crops(rows, columns) for one in chosen for rows, columns in one.grids.tolist())
    labels = sum(int((one.labels != IGNORED).sum()) for one in chosen)
    return assemble(
        chosen,
        crops=np.concatenate([one.crops for one in chosen]),
        crop_chunks=math.ceil(seen / config.model.crops_per_chunk),
        label_chunks=math.ceil(labels / config.model.labels_per_chunk),
        number=0,
    )


def arguments_of(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A pack as `Engine.inputs` gives it to the model: what places pictures and labels stays with the host."""
    return {
        "input_ids": torch.from_numpy(batch.input_ids)[None],
        "labels": torch.from_numpy(batch.labels)[None],
        "cu_seqlens": batch.cu_seqlens.tolist(),
        "position_ids": torch.from_numpy(batch.position_ids).to(device)[None],
        "pixel_values": torch.from_numpy(batch.crops).to(device),
        "image_sizes": torch.from_numpy(batch.grids * batch.crops.shape[-1]),
        "crop_chunks": batch.crop_chunks,
        "label_chunks": batch.label_chunks,
        "loss_reduction": "sum",
        "return_logits": False,
        "use_cache": False,
    }


def config_of(**sections: Any) -> Config:
    """Settings with one pack a step."""
    return Config.model_validate({"batch": {"global_batch_packs": 1}, **sections})


def load_of(config: Config, batch: Batch, architecture: Phi3VConfig) -> PackLoad:
    """A pack as the dry run's memory estimate takes it."""
    sizes = ModelSizes.of(architecture.to_dict())
    lengths = np.diff(batch.cu_seqlens)
    return PackLoad(
        tokens=len(batch.input_ids),
        labels=count_labels(batch.labels),
        crops=seen_crops(batch),
        pictures=len(batch.grids),
        image_tokens=sum(sizes.image_tokens(rows, columns) for rows, columns in batch.grids.tolist()),
        crop_chunks=batch.crop_chunks,
        label_chunks=batch.label_chunks,
        longest=int(lengths.max()),
        samples=len(lengths),
    )


def computed_peak(config: Config, batch: Batch, architecture: Phi3VConfig, device: torch.device, ranks: int = 1) -> int:
    """Bytes of a rank's device that the dry run computes for packs like this one."""
    sizes = ModelSizes.of(architecture.to_dict())
    setup = Setup.of(config, read(config), sizes, ranks=ranks, on_cpu=device.type == "cpu")
    return estimate(setup, load_of(config, batch, architecture)).peak.total


def train_step(engine: Engine, batch: Batch) -> None:
    """A step of one pack."""
    engine.train_pack(batch, 0, backward_scale(1, count_labels(batch.labels)))
    engine.step(1e-6)


def timed(step: Callable[[], object], device: torch.device, seconds: float, least: int) -> list[float]:
    """Seconds of each of the steps that fit into a time, at least so many, after one that is not counted."""
    spent: list[float] = []
    step()
    while len(spent) < least or sum(spent) < seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - begun)
    return spent
