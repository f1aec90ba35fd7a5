"""The memory that a dry run computes against what a GPU's allocator gave out at most."""

import gc
import os

import pytest
import torch

from tests.benchmarks.full_size import alone, computed_peak, config_of, make_engine, pack_of, samples
from tests.factories.small_models import small_config
from train.loss import backward_scale, count_labels
from train.model.configuration import Phi3VConfig

pytestmark = pytest.mark.gpu
ALLOWED = 0.15


def wide() -> Phi3VConfig:
    """Gigabytes of states: 4 layers of the published decoder's width, the tower of the small model."""
    return small_config(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        rope_scaling=None,
    )


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointing", "plain"])
@pytest.mark.parametrize("file", ["zero2", "zero3"])
def test_the_computed_peak_is_the_allocators(device: torch.device, file: str, checkpointing: bool, method: str) -> None:
    os.environ.pop("DS_ACCELERATOR", None)
    architecture, world = wide(), alone()
    config = config_of(
        model={"precision": "bf16", "checkpoint_decoder": checkpointing, "checkpoint_vision": checkpointing},
        tune={"method": method},
        deepspeed=f"ds_configs/{file}.json",
    )
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    engine = make_engine(architecture, config, world)
    batch = pack_of(config, samples(architecture, 4, 8192))
    for step in range(2):
        for _ in range(2):
            engine.train_pack(batch, step, backward_scale(1, count_labels(batch.labels)))
        engine.step(1e-5)
    measured = torch.cuda.max_memory_allocated(device) - before
    computed = computed_peak(config, batch, architecture, device)
    engine.deepspeed.destroy()
    print(f"measured {measured / 1e9:.2f} GB, computed {computed / 1e9:.2f} GB")
    assert measured >= 1e9
    assert abs(computed / measured - 1) <= ALLOWED
