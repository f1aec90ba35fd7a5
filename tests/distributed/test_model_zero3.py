"""ZeRO-3 on two ranks: whatever pictures and labels each rank has, nothing hangs and the sums are one rank's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

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
    """The two packs of a step: one with pictures and one without, in turns; crops and labels differ."""
    seen = [sample(10 * step, 4, [(1, 1), (2, 2)], answer=3), sample(10 * step + 1, 7, [(1, 3)], answer=9)]
    unseen = [sample(10 * step + 2, 20, answer=6)]
    mixed = [sample(10 * step + 3, 5, [(2, 1)], answer=2), sample(10 * step + 4, 3, answer=1)]
    return [[seen, unseen], [unseen, seen], [mixed, seen]][step % 3]


def train(folder: str, steps: str, out: str) -> None:
    """What each rank runs: everything trained, then all but vision, then adapters on the text alone."""
    import deepspeed
    import torch.distributed as dist
    from transformers.integrations import HfDeepSpeedConfig

    # DeepSpeed would compile an operator for sums within a machine; gloo does as well here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    keep = HfDeepSpeedConfig(CONFIG)
    results = {mode: train_mode(folder, mode, int(steps)) for mode in MODES}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results))
    del keep


def train_mode(folder: str, mode: str, steps: int) -> dict[str, Any]:
    """The losses of some steps, and whether the weights were partitioned while they were loaded."""
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
    engine.destroy()
    return {"losses": losses, "partitioned": partitioned}


def run(folder: Path, steps: int, world: int, out: Path) -> dict[str, Any]:
    """Train on so many ranks; what `train_mode` gave for each mode."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, str(folder), str(steps), str(out)]
    ranks = [
        subprocess.Popen(
            command,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), "\n".join(text[-3000:] for text in outputs)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", [6, pytest.param(20, marks=pytest.mark.soak)])
def test_two_ranks_with_different_pictures_and_labels_equal_one_rank(tmp_path: Path, steps: int) -> None:
    folder = small_folder(tmp_path / "model", spread=0.05)
    two = run(folder, steps, 2, tmp_path / "two.json")
    one = run(folder, steps, 1, tmp_path / "one.json")
    for mode in MODES:
        assert two[mode]["partitioned"], "weights must be partitioned while they are loaded"
        assert two[mode]["losses"][0] == pytest.approx(one[mode]["losses"][0], abs=1e-5)
        assert two[mode]["losses"] == pytest.approx(one[mode]["losses"], rel=1e-4)


if __name__ == "__main__":
    train(*sys.argv[1:4])
