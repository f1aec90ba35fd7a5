"""The engine with DeepSpeed's code for GPUs, on a GPU that computes nothing: what waits, and what it takes."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.conftest import Started, make_bench
from tests.factories.fake_device import build, compiler

GIB = 2**30
LORA = {"tune": {"method": "lora"}}
KEPT = {"model": {"precision": "bf16", "checkpoint_decoder": False, "checkpoint_vision": False}}
ZERO3 = {"deepspeed": "ds_configs/zero3.json"}
WAYS = {
    "zero2": {},
    "zero3": ZERO3,
    "lora": LORA,
    "lora-zero3": LORA | ZERO3,
    "frozen vision": {"tune": {"freeze": ["vision"]}},
    "several calls of the tower": {"model": {"precision": "bf16", "crops_per_chunk": 4}},
    "nothing recomputed": KEPT,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gives this PyTorch a device."""
    if torch.version.cuda is not None:
        pytest.skip("PyTorch is built for CUDA: tests/gpu tests the real device")
    if compiler() is None:
        pytest.skip("needs a C++ compiler (on Debian and Ubuntu: apt-get install g++)")
    return build(tmp_path_factory.mktemp("fake-gpu") / "fake_device.so")


DEVICE_ITSELF = """
import sys
from pathlib import Path
from tests.factories.fake_device import load
load(Path(sys.argv[1]))
import torch
from tests.factories.fake_gpu import PIECE, fake_gpu
with fake_gpu() as gpu:
    weight = torch.nn.Parameter(torch.ones(3, 4).to("cuda"))
    assert gpu.live_bytes == PIECE
    (weight * 2).sum().backward()
    assert weight.grad.device.type == "cuda" and weight.grad.shape == weight.shape
    assert gpu.waits == [] and gpu.live_bytes < gpu.peak_bytes
    weight.sum().item()
    weight.detach().cpu()
    assert len(gpu.waits) == 2, gpu.waits
    for wrong in (lambda: weight + torch.ones(3, 4), lambda: weight.nonzero(), lambda: weight @ weight):
        try:
            wrong()
        except Exception as error:
            print(type(error).__name__)
    del weight
    assert gpu.live_bytes == 0, gpu.live_bytes
"""


def test_the_device_itself_tells_of_waits_and_of_tensors_on_the_wrong_side(library: Path, root: Path) -> None:
    command = [sys.executable, "-c", DEVICE_ITSELF, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    wrong = ["FakeTensorDeviceMismatchError", "DynamicOutputShapeException", "RuntimeError"]
    assert done.stdout.split()[-3:] == wrong


@pytest.fixture(scope="module")
def trained(library: Path, root: Path) -> Callable[..., dict[str, Any]]:
    """Trains two steps of one pack; gives what fake_training prints."""
    folder = library.parent

    def train(settings: dict[str, Any], tokens: int, crops: int, full: bool = False, ranks: int = 1) -> dict[str, Any]:
        plain = {"model": {"precision": "bf16"}, "deepspeed": "ds_configs/zero2.json"}
        plain |= {"batch": {"global_batch_packs": ranks}}
        case = {"settings": plain | settings, "tokens": tokens, "crops": crops, "full": full, "ranks": ranks}
        (folder / "case.json").write_text(json.dumps(case))
        command = [sys.executable, "-m", "tests.factories.fake_training", str(library), str(folder / "case.json")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return train


@pytest.mark.parametrize("way", ["lora", *(pytest.param(way, marks=pytest.mark.soak) for way in WAYS if way != "lora")])
def test_a_pack_waits_for_nothing_and_a_step_for_a_few_numbers(
    trained: Callable[..., dict[str, Any]], way: str
) -> None:
    found = trained(WAYS[way], tokens=512, crops=4)
    assert found["device"] == "cuda:0"
    assert found["attention"] == "flash"
    assert found["pack_waits"] == []
    # DeepSpeed asks whether the gradient is finite, and for its norm; each group of parameters adds one.
    assert 0 < len(found["step_waits"]) <= 6
    assert set(found["step_waits"]) == {"aten::_local_scalar_dense"}


@pytest.mark.soak
@pytest.mark.parametrize(
    "settings", [{}, ZERO3, LORA | ZERO3, KEPT | ZERO3], ids=["zero2", "zero3", "lora-zero3", "kept-zero3"]
)
def test_one_of_eight_gpus_takes_what_a_dry_run_computes(
    trained: Callable[..., dict[str, Any]], settings: dict[str, Any]
) -> None:
    found = trained(settings, 4096, 4, full=True, ranks=8)
    peak, computed = found["peak"], found["computed"]
    print(f"{settings}, 8 GPUs: {peak / GIB:.2f} GiB counted, {computed / GIB:.2f} computed")
    assert found["pack_waits"] == []
    assert computed == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.checkpoint_decoder=true", "model.checkpoint_offload=true"),
        pytest.param(("tune.method=lora", "deepspeed=ds_configs/zero3.json"), marks=pytest.mark.soak),
        pytest.param(("deepspeed=ds_configs/zero3_offload.json",), marks=pytest.mark.soak),
        pytest.param(("model.precision=fp16",), marks=pytest.mark.soak),
        pytest.param(("run.deterministic=true",), marks=pytest.mark.soak),
    ],
    ids=["offloaded checkpoints", "lora-zero3", "zero3-offload", "fp16", "deterministic"],
)
def test_a_run_goes_from_its_start_to_its_last_checkpoint(
    library: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    bench = make_bench(tmp_path, accelerator="cuda")
    given = ("model.precision=bf16", "stop.steps=4", "evaluate.every_steps=2", "checkpoint.every_steps=2")
    command = bench.command(1, "run", *given, "deepspeed=ds_configs/zero2.json", *settings)
    command[1:1] = ["-m", "tests.factories.fake_run", str(library)]
    done = Started(command, tmp_path, DS_ACCELERATOR="cuda")
    output, _ = done.communicate(timeout=300)
    assert done.returncode == 0, output[-4000:]
    assert re.search(r"1 rank on cuda, (bf16|fp16), attention flash", output)
    assert [line["step"] for line in bench.lines("run")] == [1, 2, 3, 4]
    assert re.search(r"memory +0\.[0-9]*[1-9][0-9]* GiB", output)
    assert (bench.runs / "run" / "checkpoints" / "step-000004").is_dir()


@pytest.mark.parametrize(
    ("settings", "tokens", "crops", "limit"),
    [
        (LORA, 8192, 4, 22 * GIB),
        pytest.param(LORA, 8192, 16, 22 * GIB, marks=pytest.mark.soak),
        pytest.param(LORA | ZERO3, 8192, 4, 22 * GIB, marks=pytest.mark.soak),
        pytest.param(LORA | KEPT, 8192, 4, 48 * GIB, marks=pytest.mark.soak),
        pytest.param(LORA, 131072, 16, 141e9, marks=pytest.mark.soak),
        pytest.param({}, 4096, 4, 141e9, marks=pytest.mark.soak),
        pytest.param(KEPT, 8192, 16, 141e9, marks=pytest.mark.soak),
    ],
    ids=["lora", "lora-16", "lora-zero3", "lora-kept", "lora-131072", "full", "full-kept"],
)
def test_the_published_sizes_take_what_a_dry_run_computes(
    trained: Callable[..., dict[str, Any]], settings: dict[str, Any], tokens: int, crops: int, limit: float
) -> None:
    found = trained(settings, tokens, crops, full=True)
    peak, computed = found["peak"], found["computed"]
    print(f"{settings}, {tokens:,} tokens, {crops} crops: {peak / GIB:.2f} GiB counted, {computed / GIB:.2f} computed")
    assert peak < limit
    assert computed == pytest.approx(peak, rel=0.05)


def benchmark(library: Path, root: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A benchmark for a GPU, with a small model."""
    command = [sys.executable, "-m", "tests.factories.fake_run", str(library), f"tests.benchmarks.{name}", "--small"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=root, timeout=600, check=False)


@pytest.mark.soak
def test_the_benchmark_on_a_gpu_measures_both_ways_there(library: Path, root: Path) -> None:
    given = ("--method", "lora", "--crops", "4", "--kernels", "plain", "--seconds", "0.1", "--no-profile")
    done = benchmark(library, root, "gpu", "--in-this-process", *given)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"] == "NVIDIA H200"
    assert [case["way"] for case in found["cases"]] == ["packs", "packs", "published"]
    assert all(case["seconds"] > 0 and case["peak_gib"] > 0 and not case["recomputed"] for case in found["cases"])


@pytest.mark.soak
def test_the_benchmark_of_feeding_trains_from_shards_there(library: Path, root: Path) -> None:
    given = ("--crops", "4", "--workers", "1", "--seconds", "2", "--pictures", "40", "--tokens", "2048")
    done = benchmark(library, root, "feeding", *given)
    assert done.returncode in (0, 1), done.stderr[-4000:]  # 1: a bound on seconds, of which there are none here
    assert "cores for that" in done.stdout
