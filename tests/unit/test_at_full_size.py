"""The published sizes on PyTorch's meta device, which computes shapes alone: what a GPU's host has to know of a step.

A tensor there holds no values, so a pass that reads one back from its device fails, as a GPU would have to wait.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.geometry import image_tokens
from tests.benchmarks.full_size import (
    ANSWER,
    GRIDS,
    QUESTION,
    arguments_of,
    config_of,
    full_config,
    pack_of,
    random_model,
    samples,
)
from train.engine import part_sizes
from train.flops import Arithmetic
from train.model.modeling import Phi3VForCausalLM
from train.tuning import prepare

META = torch.device("meta")
SAMPLES = 3
"""Of one length, in a pack."""
ATTENTION = ("_varlen_attn", "bmm")
"""Operations of the decoder's and the tower's attention, which the counter takes without causality."""


def full_model() -> Phi3VForCausalLM:
    """4.15 B parameters that take no memory, by flash attention."""
    model = random_model(full_config(), META, torch.bfloat16)
    model.set_attn_implementation("flash")
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_pass_asks_its_device_for_no_value(method: str, checkpointing: bool) -> None:
    config = config_of(model={"precision": "bf16"}, tune={"method": method})
    model = full_model()
    model.set_checkpointing(decoder=checkpointing, vision=checkpointing)
    with META:
        tuned = prepare(model, config)
    loss = tuned(**arguments_of(pack_of(config, samples(full_config(), 4, 4096)), META)).loss
    loss.backward()
    trained = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert loss.device == META
    assert len(trained) > 200
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()


@pytest.mark.parametrize("crops", [4, 16])
def test_the_operations_of_a_step_are_those_that_pytorch_counts(crops: int) -> None:
    config = config_of(model={"precision": "bf16"})
    model = full_model()
    rows, columns = GRIDS[crops]
    length = QUESTION + image_tokens(rows, columns, full_config().tokens_per_side) + ANSWER
    batch = pack_of(config, samples(full_config(), crops, SAMPLES * length))
    with FlopCounterMode(display=False) as counter:
        model(**arguments_of(batch, META)).loss.backward()
    counts = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    counted = sum(count for name, count in counts.items() if not any(part in name for part in ATTENTION))
    sizes = part_sizes(model)
    arithmetic = Arithmetic.of(
        {part: size.trained for part, size in sizes.items()},
        {part: size.total for part, size in sizes.items()},
        full_config(),
    )
    pairs = arithmetic.per_pair * SAMPLES * length**2
    # Norms, biases and places are weights, but no matrices: a part in a hundred.
    assert arithmetic.of_packs([batch]) - pairs == pytest.approx(counted, rel=0.015)
    # The counter's forward pass is of all pairs of a sample, where causal attention has half of them.
    forward = next(count for name, count in counts.items() if name.endswith("_varlen_attn"))
    assert pairs == pytest.approx(3 * forward / 2, rel=1e-9)
