"""The same bits from the same step: what a GPU has to be told, and a CPU does by itself."""

import os

import torch


def be_deterministic() -> None:
    """Have torch take only kernels that give the same bits each time; raises at an operation that has none.

    To be called before the first matrix product, since cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # What is allocated here is written before it is read; filling it as well would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
