"""The trainer on GPUs: every way of training, going on to the bit, and the memory that was computed."""

import importlib.util
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.conftest import Bench, numbers
from train.checkpoint import full_tensors
from train.keeping import newest

pytestmark = pytest.mark.gpu
HALF = ("model.precision=bf16", "model.attention=flash")
WAYS = {
    "zero2": (),
    "zero3": ("deepspeed=ds_configs/zero3.json",),
    "zero3_offload": ("deepspeed=ds_configs/zero3_offload.json",),
    "checkpointing": ("model.checkpoint_decoder=true", "model.checkpoint_vision=true"),
    "checkpoints on the host": ("model.checkpoint_decoder=true", "model.checkpoint_offload=true"),
    "fp16": ("model.precision=fp16",),
    "lora": ("tune.method=lora",),
    "lora-zero3": ("tune.method=lora", "deepspeed=ds_configs/zero3.json"),
    "qlora": ("tune.method=qlora",),
    "liger": ("model.liger=true",),
    "compile": ("model.compile=true",),
    "compile-zero3": ("model.compile=true", "deepspeed=ds_configs/zero3.json"),
    "deterministic": ("run.deterministic=true",),
}
NEEDED = {"qlora": "bitsandbytes", "liger": "liger_kernel"}
FIRST = {"lora": "lora", "lora-zero3": "lora", "qlora": "lora"}
"""What a way's losses are held against, where not full fine-tuning."""


@pytest.fixture(scope="module")
def losses(bench: Bench) -> Callable[..., list[float]]:
    """Trains once for each name; gives the losses of the 20 steps."""

    def train(name: str, *settings: str, ranks: int = 1) -> list[float]:
        name = name.replace(" ", "-")
        if not (bench.runs / name).is_dir():
            ended = bench.train(ranks, name, *settings)
            assert ended.returncode == 0, ended.stdout
        return [line["loss"] for line in bench.lines(name)]

    return train


@pytest.mark.parametrize("way", list(WAYS))
def test_each_way_of_training_follows_float32(losses: Callable[..., list[float]], way: str) -> None:
    package = NEEDED.get(way)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    method = FIRST.get(way, "full")
    exact = losses(
        f"exact-{method}",
        f"tune.method={method}",
        "model.precision=fp32",
        "model.attention=eager",
        "deepspeed=ds_configs/zero2.json",
    )
    given = (*HALF, "deepspeed=ds_configs/zero2.json", *WAYS[way])
    found = losses(way, *given)
    assert len(found) == len(exact) == 20
    # 4 bits move the losses themselves; what is learned from there must fall alike.
    assert found == pytest.approx(exact, rel=0.15 if way == "qlora" else 0.05)
    assert found[-1] < 0.9 * found[0] or method == "lora"


@pytest.mark.parametrize("file", ["zero2", "zero3"])
def test_more_gpus_train_as_one_does(losses: Callable[..., list[float]], file: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    given = (*HALF, f"deepspeed=ds_configs/{file}.json")
    assert losses(f"two-{file}", *given, ranks=2) == pytest.approx(losses(file, *given), rel=0.02)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint's parameters."""
    folder = newest(run)
    assert folder is not None
    return dict(full_tensors(folder))


def test_a_killed_deterministic_run_goes_on_to_the_bit(bench: Bench, losses: Callable[..., list[float]]) -> None:
    given = (*HALF, "deepspeed=ds_configs/zero3.json", "run.deterministic=true")
    losses("straight", *given)
    process = bench.start(1, "killed", *given)
    bench.await_step("killed", 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert bench.train(1, "killed", *given).returncode == 0
    wanted, found = bench.lines("straight"), bench.lines("killed")
    assert [numbers(line) for line in found] == [numbers(line) for line in wanted]
    first, second = tensors(bench.runs / "straight"), tensors(bench.runs / "killed")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    step_s = {name: [line["time"]["step_s"] for line in bench.lines(name)[2:]] for name in ("straight", "zero3")}
    print(json.dumps({name: sorted(values)[len(values) // 2] for name, values in step_s.items() if values}))
