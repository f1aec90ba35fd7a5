"""From the host's memory to the model's device without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU by way of pinned memory, so that the host goes on while it is copied."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory(device).to(device, non_blocking=True)
    return tensor.to(device)


def placed(values: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Numbers that Python holds as a tensor of one dimension on a device."""
    return moved(torch.tensor(values, dtype=dtype), device)
