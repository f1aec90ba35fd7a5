"""Flash attention over a pack, on a GPU, against plain operations sample by sample."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.factories.comparing import ORIGINAL_LENGTH, SAMPLES
from tests.factories.small_models import pack, small_model
from train.model.attention import Segments, resolve_attention, segment_eager, segment_flash, why_no_flash

DEVICE = torch.device("cuda")
OBSTACLE = why_no_flash(DEVICE, torch.bfloat16) if torch.cuda.is_available() else "flash attention needs a CUDA device"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))]
BOUNDS = [0, 1, 130, 131, 700, 1500]


def attended(attend: Any, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> list[torch.Tensor]:
    """The output of an attention over a pack, and the gradients of query, key and value, in float32."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    tensors = [
        torch.randn(1, BOUNDS[-1], count, width, generator=generator, device=DEVICE)
        .to(torch.bfloat16)
        .to(dtype)
        .requires_grad_()
        for count in (heads, key_heads, key_heads)
    ]
    module = SimpleNamespace(training=True, num_key_value_groups=heads // key_heads)
    segments = Segments.of(BOUNDS, BOUNDS[-1], DEVICE)
    layout = [tensor.transpose(1, 2) for tensor in tensors]
    output, _ = attend(module, *layout, None, scaling=width**-0.5, segments=segments)
    slopes = torch.randn(output.shape, generator=generator, device=DEVICE)
    (output.float() * slopes).sum().backward()
    return [output.float(), *(tensor.grad.float() for tensor in tensors if tensor.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(32, 32, 96), (8, 2, 96), (4, 4, 32)])
def test_flash_gives_a_pack_the_outputs_and_gradients_of_plain_operations(
    dtype: torch.dtype, heads: int, key_heads: int, width: int
) -> None:
    found = attended(segment_flash, dtype, heads, key_heads, width)
    wanted = attended(segment_eager, torch.float32, heads, key_heads, width)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        # bfloat16 has 8 bits of mantissa: 2⁻⁸ a rounding, and a few of them.
        assert (one - other).norm() <= 2e-2 * other.norm()


def test_auto_takes_flash_and_float32_is_refused_with_the_reason() -> None:
    assert resolve_attention("auto", DEVICE, torch.bfloat16) == "flash"
    assert resolve_attention("auto", DEVICE, torch.float32) == "sdpa"
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        resolve_attention("flash", DEVICE, torch.float32)


def test_a_model_gives_a_pack_the_same_loss_by_flash_and_eager() -> None:
    batch = {key: value.to(DEVICE) if key != "cu_seqlens" else value for key, value in pack(SAMPLES).items()}
    exact = small_model(spread=0.05, original_length=ORIGINAL_LENGTH).to(DEVICE)
    exact.set_attn_implementation("eager")
    wanted = exact(**batch, return_logits=False).loss
    model = small_model(spread=0.05, original_length=ORIGINAL_LENGTH).to(DEVICE, torch.bfloat16)
    losses = {}
    for attention in ("flash", "eager"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        loss = model(**batch, return_logits=False).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        losses[attention] = loss.item()
    assert losses["flash"] == pytest.approx(losses["eager"], rel=1e-2)
    assert losses["flash"] == pytest.approx(wanted.item(), rel=2e-2)


def test_a_long_pack_has_no_square_in_memory() -> None:
    peaks = []
    for tokens in (16384, 65536):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tensors = [torch.randn(1, 2, tokens, 64, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in "qkv"]
        module = SimpleNamespace(training=True, num_key_value_groups=1)
        output, _ = segment_flash(
            module, *tensors, None, scaling=0.125, segments=Segments.of([0, tokens], tokens, DEVICE)
        )
        output.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del tensors, output
    assert peaks[1] <= 4.4 * peaks[0]
