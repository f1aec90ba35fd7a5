"""What autograd keeps of each layer for the backward pass, and what it needs for a moment, as formulas.

Read off transformers' Phi-3 and CLIP layers, operation by operation: a product keeps both factors, a linear layer its
input where its weight is trained, attention its inputs, its output and a float32 number a head. Widths are times the
bytes of a value; RMSNorm works in float32 whatever the model is in.
"""

from dataclasses import dataclass

from train.config_schema import LoraSection
from train.estimate.sizes import ModelSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How the layers are run, as far as it changes what is kept."""

    value: int
    """Bytes of an activation."""
    attention: str
    """flash, sdpa or eager."""
    trained: bool
    """Whether the layer's own weights are."""
    keeps_inputs: bool
    """Whether a linear layer keeps its input though its weight is frozen: ZeRO-3's own does."""
    lora: LoraSection | None = None


def linear_input(kept: Kept, width: int, part: str) -> int:
    """Bytes a token that a linear layer keeps of its input, adapters included."""
    adapted = kept.lora is not None and part in kept.lora.parts
    own = kept.value * width if kept.trained or kept.keeps_inputs or adapted else 0
    if not adapted or kept.lora is None:
        return own
    # The product with A; with dropout its mask, of the activation's type on a CPU, and the input it leaves.
    dropped = 2 * kept.value * width if kept.lora.dropout else 0
    return own + dropped + kept.value * kept.lora.rank


def norm(kept: Kept, width: int) -> int:
    """Bytes a token that an RMSNorm keeps: its input in float32 and, where its weight is trained, what it scales."""
    return 4 * width + (kept.value * width if kept.trained else 0)


def decoder_layer(sizes: ModelSizes, kept: Kept, longest: int, several: bool) -> int:
    """Bytes a token of the pack that one decoder layer keeps.

    longest: tokens of the longest sample. several: whether the pack holds more than one.
    """
    inner = sizes.heads * sizes.head_dim
    keys = sizes.kv_heads * sizes.head_dim
    found = 2 * norm(kept, sizes.hidden)
    found += linear_input(kept, sizes.hidden, "text_attention") + linear_input(kept, inner, "text_attention")
    # Queries and keys after rotation; the values are a view of all three together.
    found += kept.value * (inner + keys + sizes.qkv)
    if kept.attention == "eager":
        # Softmax in float32 and, in other precisions, its cast copy: a row and a column a token of the sample.
        found += (4 + kept.value % 4) * sizes.heads * longest
        found += 2 * kept.value * keys if sizes.heads != sizes.kv_heads else 0
    else:
        found += 4 * sizes.heads
        # Sample by sample the outputs are joined, and so there twice.
        found += kept.value * inner if several and kept.attention == "sdpa" else 0
    found += linear_input(kept, sizes.hidden, "text_mlp") + linear_input(kept, sizes.mlp, "text_mlp")
    found += kept.value * 3 * sizes.mlp
    return found


def decoder_work(sizes: ModelSizes, value: int) -> int:
    """Bytes a token that the backward pass of a decoder layer needs beside what was kept: gradients on their way."""
    return value * (2 * sizes.mlp + 2 * sizes.hidden)


def tower_layer(sizes: ModelSizes, kept: Kept) -> int:
    """Bytes a position of a crop that one layer of the tower keeps."""
    width, mlp = sizes.width, sizes.tower_mlp
    # Inputs of both norms and of the two linear layers behind them, queries, keys, values, what attention gives.
    found = kept.value * (4 * width + 3 * width) + 4 * sizes.tower_heads
    if kept.attention == "eager":
        found += (4 + kept.value % 4) * sizes.tower_heads * sizes.crop_tokens
    found += kept.value * width
    # Quick GELU keeps its input and its sigmoid, fc2 the product.
    found += kept.value * 3 * mlp
    if kept.lora is not None and "vision" in kept.lora.parts:
        found += kept.value * 6 * kept.lora.rank
        if kept.lora.dropout:
            found += 2 * kept.value * (5 * width + mlp)
    return found


def tower_work(sizes: ModelSizes, value: int) -> int:
    """Bytes a position that the backward pass of a tower layer needs beside what was kept."""
    return value * (2 * sizes.tower_mlp + 2 * sizes.width)


def projection(sizes: ModelSizes, kept: Kept) -> int:
    """Bytes an image token that the projector keeps: the inputs of its three stages."""
    return (
        linear_input(kept, 4 * sizes.width, "projection")
        + kept.value * sizes.hidden
        + linear_input(kept, sizes.hidden, "projection")
    )


def loss_work(sizes: ModelSizes, value: int, labels: int, chunks: int, head_trained: bool) -> tuple[int, int]:
    """Bytes that the loss needs at once, and of them those that stay till its backward pass.

    A chunk's logits are there twice in float32; the gradients of the head and of the hidden states are made along.
    """
    chunk = -(-labels // chunks)
    logits = 8 * chunk * sizes.vocabulary
    hidden = value * labels * sizes.hidden
    weight = sizes.vocabulary * sizes.hidden if head_trained else 0
    # Summed in float32; in other precisions each chunk's share and the rounded sum beside it.
    summed = (4 + (value if value < 4 else 0)) * weight
    return max(logits + (4 * weight), summed + (4 + value) * chunk * sizes.vocabulary) + 2 * hidden, value * weight + (
        2 * hidden
    )
