"""Half precision with flash attention over packs, against float32 by plain operations: logits and every gradient."""

import importlib.util

import pytest
import torch

from tests.factories.comparing import SAMPLES
from tests.factories.half_precision import check_half
from tests.factories.small_models import pack, small_model
from train.model.kernels import choose_kernels, use_kernels
from train.model.modeling import Phi3VForCausalLM

pytestmark = pytest.mark.gpu
KERNELS = {"plain": {}, "liger": {"liger": True}, "compiled": {"compiled": True}}


def exchanged(model: Phi3VForCausalLM, kind: str) -> None:
    """Fused kernels, or none."""
    chosen = {"liger": False, "compiled": False} | KERNELS[kind]
    if kind == "liger" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed")
    if kind != "plain":
        use_kernels(model, choose_kernels(**chosen))


@pytest.mark.parametrize("kind", list(KERNELS))
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_flash_packs_in_half_precision_are_float32_but_for_rounding(
    device: torch.device, dtype: torch.dtype, checkpointing: bool, kind: str
) -> None:
    def change(model: Phi3VForCausalLM) -> None:
        exchanged(model, kind)
        model.train()
        model.set_checkpointing(decoder=checkpointing, vision=checkpointing)

    distance, cosine = check_half(device, dtype, "flash", change)
    print(f"{kind} {dtype}: logits {distance:.2e}, least cosine {cosine:.6f}")


@pytest.mark.parametrize("kind", list(KERNELS))
def test_a_pass_never_waits_for_the_device(device: torch.device, kind: str) -> None:
    model = small_model().to(device, torch.bfloat16).train()
    model.set_attn_implementation("flash")
    exchanged(model, kind)
    batch = pack(SAMPLES)
    batch["pixel_values"] = batch["pixel_values"].to(device)
    arguments = batch | {"cu_seqlens": batch["cu_seqlens"].tolist(), "return_logits": False, "loss_reduction": "sum"}
    model(**arguments).loss.backward()  # tables are made and kernels compiled at the first pass
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**arguments).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
