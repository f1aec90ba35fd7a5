"""ZeRO-3 on two ranks: whatever pictures and labels each rank has, nothing hangs and the sums are one rank's."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories.ranks import join, run_ranks
from tests.factories.small_models import pack, sample, small_folder

MODES = ("full", "frozen", "lora")
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    # No parameter is small enough to stay gathered: every use must be seen by a hook.
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}


def packs_of(step: int) -> list[list[dict[str, Any]]]:
    """The two packs of a step: one with pictures and one without, in turns; crops and labels differ.

    Then both with pictures, and last one without pictures beside one without a label.
    """
    seen = [sample(10 * step, 4, [(1, 1), (2, 2)], answer=3), sample(10 * step + 1, 7, [(1, 3)], answer=9)]
    unseen = [sample(10 * step + 2, 20, answer=6)]
    mixed = [sample(10 * step + 3, 5, [(2, 1)], answer=2), sample(10 * step + 4, 3, answer=1)]
    silent = [sample(10 * step + 5, 9, [(1, 2)], answer=0)]
    return [[seen, unseen], [unseen, seen], [mixed, seen], [silent, unseen]][step % 4]


def train(folder: str, steps: str, out: str) -> None:
    """What each rank runs: everything trained, then all but vision, then adapters on the text alone."""
    from transformers.integrations import HfDeepSpeedConfig

    world = join()
    keep = HfDeepSpeedConfig(CONFIG)
    results = {mode: train_mode(folder, mode, int(steps)) for mode in MODES}
    if world.first:
        Path(out).write_text(json.dumps(results))
    del keep


def train_mode(folder: str, mode: str, steps: int) -> dict[str, Any]:
    """The losses of some steps, whether the weights were partitioned while they were loaded, and what is held.

    trained, total: elements of the parameters. gradients, moments: elements that all ranks together hold memory for;
    padding: at most so many of them are no parameter's.
    """
    import deepspeed
    import torch
    import torch.distributed as dist

    from train.model import Phi3VForCausalLM
    from train.model.lora import add_lora, set_trainable

    rank, world = dist.get_rank(), dist.get_world_size()
    model: Any = Phi3VForCausalLM.from_pretrained(folder, dtype=torch.float32)
    partitioned = all(parameter.numel() == 0 for parameter in model.parameters())
    model.set_checkpointing(decoder=True, vision=True)
    if mode == "frozen":
        set_trainable(model, ["projection", "text", "embeddings", "head"])
    if mode == "lora":
        torch.manual_seed(0)
        model, _ = add_lora(model, 4, 8, 0.0, ["text_attention", "text_mlp"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trainable, optimizer=torch.optim.AdamW(trainable, lr=1e-3), config=CONFIG
    )
    engine.train()
    losses = []
    for step in range(steps):
        packs = packs_of(step)
        mine = packs[rank] if world == 2 else packs[0] + packs[1]
        chunks = 3 if world == 2 else None
        output = engine(
            **pack(mine), crop_chunks=chunks, label_chunks=chunks, loss_reduction="sum", return_logits=False
        )
        sums = torch.stack([output.loss.detach(), output.label_tokens.float()])
        dist.all_reduce(sums)
        engine.backward(output.loss * world / sums[1])
        engine.step()
        losses.append((sums[0] / sums[1]).item())
    zero: Any = engine.optimizer
    held = {
        "trained": sum(parameter.ds_numel for parameter in trainable),
        "total": sum(parameter.ds_numel for parameter in model.parameters()),
        "padding": world * len(trainable),
        "gradients": world * zero.grad_partitions_flat_buffer.numel(),
        "moments": world * sum(state["exp_avg"].numel() for state in zero.optimizer.state.values()),
    }
    engine.destroy()
    return {"losses": losses, "partitioned": partitioned, **held}


def run(folder: Path, steps: int, ranks: int, out: Path) -> dict[str, Any]:
    """Train on so many ranks; what `train_mode` gave for each mode, on each rank."""
    run_ranks(__file__, folder, steps, out, ranks=ranks)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_two_ranks_with_different_pictures_and_labels_equal_one_rank(tmp_path: Path, steps: int) -> None:
    folder = small_folder(tmp_path / "model", spread=0.05)
    two = run(folder, steps, 2, tmp_path / "two.json")
    one = run(folder, steps, 1, tmp_path / "one.json")
    for mode in MODES:
        assert two[mode]["partitioned"], "weights must be partitioned while they are loaded"
        assert two[mode]["losses"][0] == pytest.approx(one[mode]["losses"][0], abs=1e-5)
        assert two[mode]["losses"] == pytest.approx(one[mode]["losses"], rel=1e-4)
        for found in (one[mode], two[mode]):
            assert found["trained"] <= found["gradients"] <= found["trained"] + found["padding"]
            assert found["trained"] <= found["moments"] <= found["trained"] + found["padding"]
    assert two["lora"]["trained"] < two["frozen"]["trained"] < two["full"]["trained"] < two["full"]["total"]


if __name__ == "__main__":
    train(*sys.argv[1:4])
