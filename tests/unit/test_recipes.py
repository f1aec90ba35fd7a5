"""Every recipe of the project, before a run: it loads, its DeepSpeed file goes with it, and its memory is computed."""

from pathlib import Path

import pytest

from train.before import settings_lines, sizes_of
from train.config import DEFAULT, load, origins
from train.deepspeed_checks import check_sections
from train.deepspeed_config import read
from train.estimate.loads import usual_load
from train.estimate.memory import estimate
from train.estimate.report import Machine, advice_lines, memory_lines, on_gpu, parameter_lines
from train.estimate.setup import Setup
from train.estimate.sizes import PUBLISHED

GIB = 2**30
RECIPES = sorted(DEFAULT.parent.glob("*.yaml"))
GPUS = {
    "default": (8, 80),
    "full_8x80gb": (8, 80),
    "lora_8x80gb": (8, 80),
    "lora_24gb": (1, 24),
    "full_24gb_offload": (1, 24),
    "qlora_12gb": (1, 12),
    "quickstart": (2, 8),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_beforehand_that_it_fits_the_machine_it_is_named_for(path: Path) -> None:
    config = load(path)
    settings = read(config)
    check_sections(settings, config.deepspeed)
    gpus, size = GPUS[path.stem]
    machine = Machine(nodes=1, gpus=gpus, gpu_memory=size * GIB)
    stated = next(line for line in settings_lines(config, origins(path), machine) if "stop.epochs" in line)
    assert stated.startswith(f"  stop.epochs = {config.stop.epochs}   YAML, ")
    assert stated.endswith(".yaml")
    # The quickstart's own model is made by its commands: the published one stands in.
    sizes = PUBLISHED if path.stem == "quickstart" else sizes_of(config)
    load_ = usual_load(config, sizes, config.model.num_crops or 16)
    setup = Setup.of(config, settings, sizes, machine.ranks)
    assert " are trained" in "\n".join(parameter_lines(setup))
    assert "\n *on " in "\n".join(memory_lines(setup, load_, machine)) or path.stem == "quickstart"
    if path.stem != "quickstart":
        assert on_gpu(estimate(setup, load_)) <= machine.gpu_memory
        assert next(advice_lines(config, sizes, load_, machine)).startswith("it fits: ")


def test_the_default_is_the_full_recipe() -> None:
    plain, full = (
        load(DEFAULT.with_name(name)).model_dump(exclude={"run"}) for name in ("default.yaml", "full_8x80gb.yaml")
    )
    assert plain == full
