"""The benchmark on a GPU, as far as a CPU goes: its packs, its count of kernels' time, its two ways of training."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_ways
from tests.benchmarks.full_size import computed_peak, config_of, full_config, pack_of, samples
from tests.benchmarks.gpu_ways import quickest
from tests.benchmarks.kernel_times import covered, kind_of
from train.engine import part_sizes
from train.flops import Arithmetic, seen_crops
from train.model.modeling import Phi3VForCausalLM


@pytest.mark.parametrize(("crops", "tokens", "whole"), [(4, 1024, False), (16, 16384, False), (16, 16384, True)])
def test_packs_are_full_and_hold_whole_pictures(crops: int, tokens: int, whole: bool) -> None:
    architecture, config = full_config(), config_of()
    chosen = samples(architecture, crops, tokens, whole)
    batch = pack_of(config, chosen)
    assert len(batch.input_ids) == tokens
    assert len(chosen) == 1 or not whole
    assert seen_crops(batch) == len(batch.grids) * (crops + 1)
    picture = {4: 757, 16: 2509}[crops]
    assert int((batch.input_ids < 0).sum()) == picture * len(batch.grids)
    assert tokens - picture * len(batch.grids) < picture + 48 * len(chosen)
    assert computed_peak(config, batch, architecture, torch.device("cuda")) > 8.3e9


def test_a_picture_that_fits_no_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="16 crops"):
        samples(full_config(), 16, 2048)


def test_operations_are_counted_as_the_sizes_have_them() -> None:
    with torch.device("meta"):
        model = Phi3VForCausalLM(full_config())
    sizes = part_sizes(model)
    every = {part: size.total for part, size in sizes.items()}
    full = Arithmetic.of(every, every, model.config)
    assert full.per_token == pytest.approx(6 * 3.62e9, rel=5e-3)
    none = dict.fromkeys(every, 0)
    frozen = Arithmetic.of(none | {"text": 50_000_000}, every, model.config)
    assert frozen.per_crop == pytest.approx(2 * 0.29e9 * 577, rel=0.1)
    assert frozen.per_token == pytest.approx(4 * 3.62e9, rel=0.02)


def test_time_with_kernels_side_by_side_is_counted_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == pytest.approx(4)
    assert covered([]) == 0


def test_kernels_are_told_by_their_names() -> None:
    assert kind_of("void pytorch_flash::flash_bwd_dq_dk_dv_loop") == "attention"
    assert kind_of("nvjet_hsh_128x256_64x4_TNT") == "matrix products"
    assert kind_of("Memcpy HtoD (Pinned -> Device)") == "copies"
    assert kind_of("triton_poi_fused_mul_silu_0").startswith("the rest")


def test_the_quickest_kernels_that_run_are_taken() -> None:
    assert quickest({"plain": 0.3, "liger": "not installed", "compile": 0.2}) == "compile"
    with pytest.raises(RuntimeError, match="not installed"):
        quickest({"liger": "not installed"})


def test_kernels_that_fail_are_told_and_the_others_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(gpu_ways, "use_way", lambda engine, way: used.append(way))

    def step() -> None:
        if used[-1] == "compile":
            raise OSError("no compiler\nat all")

    engine: Any = SimpleNamespace(world=SimpleNamespace(device=torch.device("cpu")))
    found = gpu_ways.try_ways(engine, ["plain", "liger", "compile"], step)
    assert used == ["plain", "compile"]
    assert isinstance(found["plain"], float)
    assert "CUDA" in str(found["liger"])
    assert found["compile"] == "OSError: no compiler"


@pytest.mark.parametrize(
    ("method", "tokens", "memory", "wanted"),
    [
        ("lora", 8192, 141e9, False),
        ("lora", 8192, 24e9, True),
        ("lora", 131072, 141e9, True),
        ("full", 1024, 141e9, False),
    ],
)
def test_activations_are_recomputed_where_they_would_not_fit(
    method: str, tokens: int, memory: float, wanted: bool
) -> None:
    config = config_of(model={"precision": "bf16"}, tune={"method": method}, deepspeed="ds_configs/zero2.json")
    engine: Any = SimpleNamespace(config=config, world=SimpleNamespace(device=torch.device("cuda")))
    batch = pack_of(config, samples(full_config(), 4, tokens))
    assert gpu_ways.must_recompute(engine, batch, full_config(), memory) is wanted


@pytest.mark.soak
def test_the_program_measures_both_ways_on_a_small_model() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--small", "--crops", "4", "--method", "lora"]
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--in-this-process"], capture_output=True, text=True, check=True, timeout=600
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert {case["way"] for case in found["cases"]} == {"packs", "published"}
    assert all(case["seconds"] > 0 and case["operations"] > 0 for case in found["cases"])
    assert isinstance(found["tried"]["plain"], float)
    assert "CUDA" in found["tried"]["liger"]
    assert found["kernels"] in ("plain", "compile")
    assert found["cases"][0]["explained"] > 0
