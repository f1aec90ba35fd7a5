"""Peak memory of one long pack, forward and backward: `python -m tests.factories.long_pack TOKENS … [--pictures]`.

Prints {tokens: bytes}, each measured in a process of its own, from what imports and the model took on.
"""

import argparse
import json
import multiprocessing
import os
from typing import Any

import torch

from tests.factories.memory import reset_peak, status_bytes
from tests.factories.small_models import pack, sample, small_config
from train.model import Phi3VForCausalLM

# Attention grows with the square of the tokens: one layer of one narrow head keeps 131,072 of them within minutes.
WIDTH, HEADS = 16, 1


def long_model(attention: str, checkpointing: bool) -> Phi3VForCausalLM:
    """One decoder layer over pictures of 28 pixels, in training."""
    torch.manual_seed(0)
    pairs = [1.0] * (WIDTH // HEADS // 2)
    config = small_config(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rope_scaling={"type": "su", "short_factor": pairs, "long_factor": pairs},
    )
    model = Phi3VForCausalLM(config).train()
    model.set_attn_implementation(attention)
    model.set_checkpointing(decoder=checkpointing, vision=checkpointing)
    return model


def long_sample(tokens: int, pictures: bool) -> dict[str, Any]:
    """One sample of exactly so many tokens, an eighth of them labels; with pictures, they are half of the rest."""
    answer = tokens // 8
    grids = [(4, 4)] * (tokens * 7 // 16 // 82 if pictures else 0)
    start = sample(0, 0, grids, answer=answer)
    return sample(0, tokens - len(start["input_ids"]), grids, answer=answer)


def peak(model: Phi3VForCausalLM, tokens: int, pictures: bool) -> int:
    """Bytes that a forward and backward pass takes at most, its inputs included, what a first one loads left out."""
    step(model, 1024, pictures)
    model.zero_grad()
    reset_peak()
    before = status_bytes("VmRSS")
    step(model, tokens, pictures)
    return status_bytes("VmHWM") - before


def step(model: Phi3VForCausalLM, tokens: int, pictures: bool) -> None:
    """Forward and backward of one pack."""
    batch = pack([long_sample(tokens, pictures)])
    assert batch["input_ids"].shape == (1, tokens)
    output = model(**batch, loss_reduction="sum", return_logits=False, use_cache=False)
    output.loss.backward()
    assert output.label_tokens == tokens // 8
    assert torch.isfinite(output.loss)


def measured(model: Phi3VForCausalLM, tokens: int, pictures: bool) -> int:
    """`peak` in a child process, whose heap no earlier measurement has grown."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send(peak(model, tokens, pictures)), daemon=True
    )
    child.start()
    theirs.close()
    result = int(ours.recv())
    child.join()
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", type=int, nargs="+")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = long_model(options.attention, options.checkpointing)
    found = {tokens: measured(model, tokens, options.pictures) for tokens in options.tokens}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
