import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from train.model.attention import (
    Segments,
    installed_kernel,
    resolve_attention,
    segment_eager,
    segment_flash,
    segment_sdpa,
)

CPU = torch.device("cpu")


def tensors(heads: int, key_heads: int, tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, count, tokens, 8, generator=generator) for count in (heads, key_heads, key_heads))


@pytest.mark.parametrize("attend", [segment_sdpa, segment_eager])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_a_sample_in_a_pack_attends_as_it_does_alone(attend: object, key_heads: int) -> None:
    module = SimpleNamespace(training=False, num_key_value_groups=4 // key_heads)
    q, k, v = tensors(4, key_heads, 12)
    segments = Segments.of([0, 5, 6, 12], 12, CPU)
    packed, _ = attend(module, q, k, v, None, scaling=8**-0.5, segments=segments)  # type: ignore[operator]
    for start, end in ((0, 5), (5, 6), (6, 12)):
        piece = slice(start, end)
        alone = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, piece], k[:, :, piece], v[:, :, piece], is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(packed[:, piece], alone.transpose(1, 2))


@pytest.mark.parametrize("bounds", [[0, 3], [1, 8], [0, 8, 8], [0, 5, 4, 8], [0]])
def test_bounds_that_are_no_pack_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        Segments.of(bounds, 8, CPU)


def test_auto_takes_sdpa_on_a_cpu() -> None:
    assert resolve_attention("auto", "cpu", torch.float32) == "sdpa"
    assert resolve_attention("eager", "cpu", torch.float32) == "eager"


def test_flash_on_a_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="CUDA"):
        resolve_attention("flash", "cpu", torch.bfloat16)


def test_an_unknown_setting_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="auto, flash, sdpa, eager"):
        resolve_attention("flash_attn", "cpu", torch.bfloat16)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ends: torch.Tensor, scale: float, grouped: bool
) -> torch.Tensor:
    """What a variable-length kernel computes of [T, heads, head_dim], stretch by stretch."""
    pieces = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor[start:end].transpose(0, 1)[None] for tensor in (q, k, v)),
            is_causal=True,
            scale=scale,
            enable_gqa=grouped,
        )[0].transpose(0, 1)
        for start, end in pairwise(ends.tolist())
    ]
    return torch.cat(pieces)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The kernel is looked for once a process; here before and after the test."""
    installed_kernel.cache_clear()
    yield
    installed_kernel.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("kernel", ["torch", "flash_attn"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_flash_hands_a_pack_to_the_kernel_that_there_is(
    monkeypatch: pytest.MonkeyPatch, kernel: str, key_heads: int
) -> None:
    called: list[str] = []
    real = inspect.signature(varlen.varlen_attn)

    def torchs(*args: Any, **options: Any) -> torch.Tensor:
        given = real.bind(*args, **options).arguments
        called.append("torch")
        assert given["window_size"] == (-1, 0)
        assert given["max_q"] == given["max_k"] == 6
        assert given["cu_seq_q"] is given["cu_seq_k"]
        assert given["enable_gqa"] == (key_heads != 4)
        return reference(
            given["query"], given["key"], given["value"], given["cu_seq_q"], given["scale"], given["enable_gqa"]
        )

    # The published signature of flash_attn 2, as far as it is used.
    def flash_attns(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        deterministic: bool = False,
    ) -> torch.Tensor:
        called.append("flash_attn")
        assert causal
        assert softmax_scale is not None
        assert max_seqlen_q == max_seqlen_k == 6
        return reference(q, k, v, cu_seqlens_q, softmax_scale, key_heads != 4)

    monkeypatch.setattr(varlen, "varlen_attn", torchs)
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attns  # type: ignore[attr-defined]
    # None in sys.modules makes the import fail, as where it is not installed.
    monkeypatch.setitem(sys.modules, "flash_attn", package if kernel == "flash_attn" else None)
    module = SimpleNamespace(training=False, num_key_value_groups=4 // key_heads)
    q, k, v = tensors(4, key_heads, 12)
    options: dict[str, Any] = {"scaling": 0.3, "segments": Segments.of([0, 5, 6, 12], 12, CPU)}
    found, _ = segment_flash(module, q, k, v, None, **options)  # type: ignore[arg-type]
    wanted, _ = segment_sdpa(module, q, k, v, None, **options)  # type: ignore[arg-type]
    assert called == [kernel]
    torch.testing.assert_close(found, wanted)


def test_flash_leaves_dropout_to_sdpa_since_no_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", None)
    module = SimpleNamespace(training=True, num_key_value_groups=1)
    q, k, v = tensors(4, 4, 12)
    options: dict[str, Any] = {"scaling": 0.3, "dropout": 0.5, "segments": Segments.of([0, 12], 12, CPU)}
    torch.manual_seed(1)
    found, _ = segment_flash(module, q, k, v, None, **options)  # type: ignore[arg-type]
    torch.manual_seed(1)
    assert torch.equal(found, segment_sdpa(module, q, k, v, None, **options)[0])  # type: ignore[arg-type]
