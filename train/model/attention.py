"""Attention inside the segments of a pack, and the choice of its implementation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import eager_attention_forward

from train.model.transfer import placed

SETTINGS = ("auto", "flash", "sdpa", "eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Where the samples of a pack end."""

    ends: Tensor
    """int32 [S + 1] on the model's device: `cu_seqlens`"""
    bounds: tuple[int, ...]
    """the same numbers, where Python can see them"""
    lengths: tuple[int, ...]
    """tokens of each of the S samples"""

    @classmethod
    def of(cls, cu_seqlens: Tensor | Sequence[int], tokens: int, device: torch.device) -> "Segments":
        """Check `cu_seqlens` ([S + 1], from 0 to the pack's number of tokens, rising) and keep it in both forms."""
        bounds = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else [int(bound) for bound in cu_seqlens]
        lengths = tuple(end - start for start, end in pairwise(bounds))
        if not lengths or bounds[0] != 0 or bounds[-1] != tokens or min(lengths) < 1:
            raise ValueError(
                f"cu_seqlens: must rise from 0 to the pack's {tokens} tokens without an empty sample, found {bounds}"
            )
        return cls(ends=placed(bounds, device, torch.int32), bounds=tuple(bounds), lengths=lengths)


def why_no_flash(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why variable-length flash attention cannot run there, or None where it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device.type!r}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16, and the model is {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 (Ampere), and {torch.cuda.get_device_name(device)} has less"
    return None


def resolve_attention(setting: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The attention that a setting means on this device: "flash", "sdpa" or "eager".

    Arguments: auto | flash | sdpa | eager; where the model will run; the dtype it will run in.
    `auto` takes flash where that can be had and sdpa elsewhere.
    Raises ValueError for another setting, and for flash where it cannot be had, saying why.
    """
    device = torch.device(device)
    if setting not in SETTINGS:
        raise ValueError(f"attention: {setting!r} is not a setting; allowed: {', '.join(SETTINGS)}")
    obstacle = why_no_flash(device, dtype)
    if setting == "flash" and obstacle:
        raise ValueError(f"attention: flash cannot be had: {obstacle}; set it to auto or sdpa")
    if setting == "auto":
        return "sdpa" if obstacle else "flash"
    return setting


def _by_segment(attend: Any, lengths: tuple[int, ...], *tensors: Tensor) -> Tensor:
    """Run `attend` on each sample's stretch of tensors [1, heads, T, head_dim]; join what it gives."""
    if len(lengths) == 1:
        return attend(*tensors)
    stretches = zip(*(tensor.split(lengths, dim=2) for tensor in tensors), strict=True)
    return torch.cat([attend(*stretch) for stretch in stretches], dim=2)


def segment_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention by PyTorch's kernels, [B, heads, T, head_dim] → [B, T, heads, head_dim].

    In a pack one call a sample: on a CPU as quick as one padded call for samples of like length, and several times
    quicker for others; there is never a [T, T] mask.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    grouped = query.shape[1] != key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=grouped
        )

    return _by_segment(attend, segments.lengths, query, key, value).transpose(1, 2).contiguous(), None


def segment_eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The same as `segment_sdpa` in plain operations, softmax in float32, as the published code computes it."""
    if segments is None:
        weight = query.shape[-1] ** -0.5 if scaling is None else scaling
        return eager_attention_forward(module, query, key, value, attention_mask, weight, dropout, **kwargs)
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    weight = query.shape[-1] ** -0.5 if scaling is None else scaling

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(2, 3)) * weight
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(F.dropout(weights, p=dropout, training=module.training), v)

    return _by_segment(attend, segments.lengths, query, key, value).transpose(1, 2).contiguous(), None


def segment_flash(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Variable-length flash attention over the whole pack; the same as `segment_sdpa` outside packs and with dropout.

    flash_attn's kernel where that package is installed, else PyTorch's own.
    """
    if segments is None or dropout:
        return segment_sdpa(module, query, key, value, attention_mask, scaling, dropout, segments, **kwargs)
    # Taken apart by shape and not by index: the slopes of an index are written between zeros first.
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    ends, longest = segments.ends, max(segments.lengths)
    flash_attn = installed_kernel()
    if flash_attn is not None:
        exact = torch.are_deterministic_algorithms_enabled()
        attended = flash_attn(
            q, k, v, ends, ends, longest, longest, softmax_scale=scaling, causal=True, deterministic=exact
        )
    else:
        grouped = query.shape[1] != key.shape[1]
        # A window of (-1, 0) is what this function calls causal.
        attended = varlen.varlen_attn(
            q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
        )
    return attended[None], None


@cache
def installed_kernel() -> Callable[..., Any] | None:
    """flash_attn's variable-length kernel, or None where the package is absent or made for another torch."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    kernel: Callable[..., Any] = flash_attn_varlen_func
    return kernel


def registered_name(attention: str) -> str:
    """The name under which transformers' decoder layers find our function for flash, sdpa or eager."""
    functions = {"flash": segment_flash, "sdpa": segment_sdpa, "eager": segment_eager}
    name = f"segments_{attention}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, functions[attention])
    return name
