"""Forward and backward as published, sample by sample, on the model inside the trainer's engine."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from tests.benchmarks.full_size import inner_model
from tests.benchmarks.published import MEAN, STD, published_states
from train.engine import Engine
from train.pipeline.batch import Encoded


def as_published(engine: Engine, chosen: Sequence[Encoded], grid: tuple[int, int], num_crops: int) -> None:
    """One sample with one picture after the other: crops filled up to num_crops + 1, sdpa, all logits in float32."""
    device, inner = engine.world.device, inner_model(engine)
    inner.set_attn_implementation("sdpa")
    try:
        for one in chosen:
            ids = torch.from_numpy(one.input_ids)[None].to(device)
            labels = torch.from_numpy(one.labels).to(device)
            # Known here: the published code looks for them on the device, and waits.
            where = torch.from_numpy(np.flatnonzero(one.input_ids < 0)).to(device)
            hidden = published_states(inner, ids, filled_up(one, num_crops, device), grid, where)
            logits = inner.lm_head(hidden[0, :-1]).float()
            loss = F.cross_entropy(logits, labels[1:])
            engine.deepspeed.backward(loss / len(chosen), scale_wrt_gas=False)
    finally:
        inner.set_attn_implementation(engine.attention)


def filled_up(one: Encoded, num_crops: int, device: torch.device) -> torch.Tensor:
    """Normalised pixels float32 [num_crops + 1, 3, c, c]: a view, the picture's crops, zeros. The view is one of its
    crops, which costs what another would."""
    crops = torch.from_numpy(one.crops).to(device).float().div_(255)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    crops = (crops - mean) / std
    pixels = torch.zeros(num_crops + 1, *crops.shape[1:], device=device)
    pixels[1 : 1 + len(crops)] = crops
    pixels[0] = crops[0]
    return pixels
