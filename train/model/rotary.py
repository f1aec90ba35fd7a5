"""Rotary position embedding with the short or the long factors chosen by each sample's own length (LongRoPE, "su")."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from train.model.configuration import Phi3VConfig


class SampleRotary(nn.Module):
    """cos and sin of a batch's positions, each sample by the branch that its own length asks for.

    The inverse frequencies are no buffers: they are computed in float32 for a device when first used there, so no cast
    of the whole module, no meta device and no partitioning can touch them.
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope: dict[str, Any] = config.rope_parameters  # type: ignore[assignment]
        self.original_length: int = config.original_max_position_embeddings
        self.short_factor: list[float] = rope.get("short_factor") or [1.0] * (config.head_dim // 2)
        self.long_factor: list[float] = rope.get("long_factor") or self.short_factor
        self.theta: float = rope["rope_theta"]
        self.head_dim = config.head_dim
        self.has_branches = "long_factor" in rope
        self.scaling = 1.0
        ratio = config.max_position_embeddings / self.original_length
        if self.has_branches and ratio > 1:
            # LongRoPE (arXiv 2402.13753), as in the published code: on both branches.
            self.scaling = math.sqrt(1 + math.log(ratio) / math.log(self.original_length))
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def inverse_frequencies(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Short and long inverse frequencies, float32 [head_dim / 2] each."""
        if device not in self._tables:
            steps = torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=device).float() / self.head_dim
            short, long = (
                1.0 / (torch.tensor(factor, dtype=torch.float32, device=device) * self.theta**steps)
                for factor in (self.short_factor, self.long_factor)
            )
            self._tables[device] = (short, long)
        return self._tables[device]

    @torch.no_grad()
    def forward(self, position_ids: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin.

        Arguments: position_ids int64 [B, T]; lengths int64, the length of the sample that a position belongs to,
        [B, T] or [B, 1]; the dtype of the result.
        Returns: cos and sin [B, T, head_dim]; the angles are float32 whatever the dtype.
        """
        short, long = self.inverse_frequencies(position_ids.device)
        frequencies = short
        if self.has_branches:
            frequencies = torch.where((lengths > self.original_length)[..., None], long, short)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)
