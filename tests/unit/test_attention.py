from types import SimpleNamespace

import pytest
import torch

from train.model.attention import Segments, resolve_attention, segment_eager, segment_sdpa

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
