"""What tests on a GPU share; they skip where there is none."""

import pytest
import torch

from tests.distributed.conftest import Bench, make_bench

NONE = "needs a CUDA device"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU."""
    if not torch.cuda.is_available():
        pytest.skip(NONE)
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def bench(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Small shards, a small model and settings, trained on GPUs in bf16."""
    return make_bench(tmp_path_factory.mktemp("bench"), accelerator="cuda")
