"""Fused kernels for what lies between the matrix products: Liger's, or torch.compile's of the plain operations.

Norms, the gate of the MLP, the rotation of queries and keys, the tower's activation and the loss's slopes read and
write whole activations for a few operations each; fused, each reads and writes them once. The matrix products stay
what they are, so partitioned weights and adapters, which hang on the linear layers, are not touched.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3 import modeling_phi3
from transformers.models.phi3.modeling_phi3 import Phi3Attention, Phi3MLP, Phi3RMSNorm, eager_attention_forward

from train.model.head import Slopes, label_slopes
from train.model.modeling import Phi3VForCausalLM


class Kernels(NamedTuple):
    """The operations that are exchanged."""

    norm: Callable[[Tensor, Tensor, float], Tensor]
    """hidden [..., n], weight [n], epsilon → normalised"""
    gate: Callable[[Tensor], Tensor]
    """gate and up side by side [..., 2 n] → silu(gate) · up [..., n]"""
    rotate: Callable[..., tuple[Tensor, Tensor]]
    """query and key [B, heads, T, width], cos and sin [B, T, width] → both, turned"""
    slopes: Slopes
    """see head.label_slopes"""
    quick_gelu: Callable[[Tensor], Tensor]


def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm, computed in float32."""
    exact = hidden.float()
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * exact.to(hidden.dtype)


def gate(gate_up: Tensor) -> Tensor:
    """SwiGLU of gate and up side by side."""
    gated, up = gate_up.chunk(2, dim=-1)
    return up * nn.functional.silu(gated)


def quick_gelu(hidden: Tensor) -> Tensor:
    """The activation of CLIP."""
    return hidden * torch.sigmoid(1.702 * hidden)


def logit_slopes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss at logits [n, vocabulary], float32, and its slopes in their dtype; the logits are kept."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    hit = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    return -logs.gather(1, labels[:, None]).sum(), (logs.exp() - hit.float()).to(logits.dtype)


def why_no_liger(device: torch.device) -> str | None:
    """Why Liger's kernels cannot run there, or None where they can."""
    if device.type != "cuda":
        return f"its kernels need a CUDA device, and the model is on {device.type!r}"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed: pip install -c constraints.txt -e '.[liger]'"
    return None


def why_no_compiler(device: torch.device) -> str | None:
    """Why torch.compile cannot make kernels there, or None where it can."""
    compilers = [os.environ.get("CXX", "c++"), "g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        return "on a CPU it needs a C++ compiler, and none is installed (on Debian and Ubuntu: apt-get install g++)"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "on a GPU it needs triton, which torch's own wheels for CUDA bring with them"
    return None


def choose_kernels(*, liger: bool, compiled: bool, backend: str = "inductor") -> Kernels:
    """The operations as they are, compiled for any number of tokens, by Liger, or by Liger where it has them.

    backend: of torch.compile.
    """

    def made(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=backend, dynamic=True) if compiled else function

    kernels = Kernels(
        norm=made(norm),
        gate=made(gate),
        rotate=made(modeling_phi3.apply_rotary_pos_emb),
        slopes=_slopes_by(made(logit_slopes)) if compiled else label_slopes,
        quick_gelu=made(quick_gelu),
    )
    if liger:
        kernels = kernels._replace(**_ligers())
    return kernels


def _ligers() -> dict[str, Callable[..., Any]]:
    """Liger's kernels for Phi-3's layers. Its loss reads numbers back from the GPU for each chunk, so ours stays."""
    from liger_kernel.ops import LigerRMSNormFunction, LigerSiLUMulFunction
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    def liger_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        # Not in place: the gradient that comes in is also the residual's.
        return LigerRMSNormFunction.apply(hidden, weight, epsilon, 0.0, "llama", False, None)

    def liger_gate(gate_up: Tensor) -> Tensor:
        gated, up = gate_up.chunk(2, dim=-1)
        return LigerSiLUMulFunction.apply(gated, up, 1.0, 1.0)

    return {"norm": liger_norm, "gate": liger_gate, "rotate": liger_rotary_pos_emb}


def use_kernels(model: Phi3VForCausalLM, kernels: Kernels) -> None:
    """Exchange these operations in one model; its parameters, their names and hooks stay."""
    model.lm_head.slopes = kernels.slopes
    for module in model.modules():
        if isinstance(module, Phi3RMSNorm):
            module.forward = MethodType(_norm_by(kernels.norm), module)
        elif isinstance(module, Phi3MLP):
            module.forward = MethodType(_mlp_by(kernels.gate), module)
        elif isinstance(module, Phi3Attention):
            module.forward = MethodType(_attention_by(kernels.rotate), module)
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    for layer in tower.encoder.layers:
        layer.mlp.activation_fn.forward = kernels.quick_gelu


def _slopes_by(function: Callable[..., tuple[Tensor, Tensor]]) -> Slopes:
    return lambda hidden, weight, labels: function(nn.functional.linear(hidden, weight), labels)


def _norm_by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Phi3RMSNorm, hidden_states: Tensor) -> Tensor:
        return function(hidden_states, self.weight, self.variance_epsilon)

    return forward


def _mlp_by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: Phi3MLP, hidden_states: Tensor) -> Tensor:
        return self.down_proj(function(self.gate_up_proj(hidden_states)))

    return forward


def _attention_by(rotate: Callable[..., Any]) -> Callable[..., Any]:
    """The layer's own steps with another rotation, and queries, keys and values split in one step.

    The backward pass of slices would write each one's slopes between zeros as wide as all three, and add them up.
    """

    def forward(
        self: Phi3Attention,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        places = hidden_states.shape[:-1]
        heads, key_heads = self.config.num_attention_heads, self.num_key_value_heads
        widths = [count * self.head_dim for count in (heads, key_heads, key_heads)]
        parts = self.qkv_proj(hidden_states).split(widths, dim=-1)
        query, key, value = (part.view(*places, -1, self.head_dim).transpose(1, 2) for part in parts)
        query, key = rotate(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self.config, "sliding_window", None),
            **kwargs,
        )
        return self.o_proj(attended.reshape(*places, -1).contiguous()), weights

    return forward
