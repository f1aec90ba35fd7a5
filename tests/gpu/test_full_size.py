"""The published sizes with random weights: what LoRA and QLoRA take, and the longest context in one pack."""

import gc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.benchmarks.full_size import alone, config_of, full_config, make_engine, pack_of, random_model, samples
from train.config_schema import Config
from train.deepspeed_config import compose, read
from train.engine import Engine, load_model
from train.loss import backward_scale, count_labels
from train.model.configuration import Phi3VConfig
from train.pipeline.batch import Encoded

pytestmark = pytest.mark.gpu
GIB = 2**30
ON_DISK = 10e9


def settings(method: str) -> Config:
    """One pack a step, checkpointing on, nothing partitioned."""
    return config_of(model={"precision": "bf16"}, tune={"method": method}, deepspeed="ds_configs/zero2.json")


@pytest.fixture
def memory(device: torch.device) -> int:
    """Bytes of the GPU, empty and with its peak forgotten."""
    os.environ.pop("DS_ACCELERATOR", None)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.get_device_properties(device).total_memory)


def peak_gib(engine: Engine, chosen: Sequence[Encoded]) -> float:
    """The most that two steps of a pack take; the loss has to be a number."""
    batch = pack_of(engine.config, chosen)
    torch.cuda.reset_peak_memory_stats(engine.world.device)
    for step in range(2):
        loss = engine.train_pack(batch, step, backward_scale(1, count_labels(batch.labels)))
        engine.step(1e-5)
        assert torch.isfinite(loss)
    peak = torch.cuda.max_memory_allocated(engine.world.device) / GIB
    engine.deepspeed.destroy()
    return peak


def needs(memory: int, gib: float) -> None:
    """Skip on a smaller GPU."""
    if memory < gib * GIB:
        pytest.skip(f"needs a GPU of {gib:g} GiB")


@pytest.mark.parametrize("crops", [4, 16])
def test_lora_of_8192_tokens_takes_less_than_22_gib(memory: int, crops: int) -> None:
    needs(memory, 22)
    engine = make_engine(full_config(), settings("lora"), alone())
    peak = peak_gib(engine, samples(full_config(), crops, 8192))
    print(f"LoRA, 8,192 tokens, {crops} crops: {peak:.1f} GiB")
    assert peak < 22


@pytest.mark.parametrize("whole", [False, True], ids=["52 samples", "one sample"])
def test_131072_tokens_train_in_one_pack(memory: int, whole: bool) -> None:
    needs(memory, 60)
    engine = make_engine(full_config(), settings("lora"), alone())
    peak = peak_gib(engine, samples(full_config(), 16, 131072, whole))
    print(f"LoRA, 131,072 tokens: {peak:.1f} GiB")
    assert peak * GIB < memory


def model_folder(folder: Path, architecture: Phi3VConfig, device: torch.device) -> Path:
    """A folder of random weights at full size."""
    model = random_model(architecture, device, torch.bfloat16)
    model.save_pretrained(folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return folder


def test_qlora_of_8192_tokens_takes_less_than_11_gib(memory: int, device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    needs(memory, 11)
    if shutil.disk_usage(tmp_path).free < ON_DISK:
        pytest.skip("needs 10 GB of disk for the weights that are loaded in 4 bits")
    config, world = settings("qlora"), alone()
    composed = compose(config, read(config), 1)
    model = load_model(config, model_folder(tmp_path / "model", full_config(), device), composed, world)
    peak = peak_gib(Engine(model, config, composed, world), samples(full_config(), 4, 8192))
    print(f"QLoRA, 8,192 tokens: {peak:.1f} GiB")
    assert peak < 11
