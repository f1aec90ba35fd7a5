"""Peak memory of a rank in training, measured: `run_ranks(measured_memory.__file__, CASE.json)`.

A case holds `sizes` of a small model, `settings` of a run, and what a pack has. Each rank prints, in bytes and with the
idle process after imports taken off, the most it took for the engine's start, for packs and for steps.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.factories.memory import reset_peak, status_bytes
from tests.factories.ranks import join
from tests.factories.small_models import sample
from train.config import validate
from train.config_schema import Config
from train.deepspeed_config import compose, read
from train.distributed import World, end_at_once
from train.engine import Engine, load_model
from train.model import Phi3VForCausalLM
from train.model.tiny import Sizes, tiny_config
from train.pipeline.batch import Encoded, assemble

STEPS, PACKS = 2, 2
TINY = {
    "hidden": 64,
    "layers": 1,
    "vision_hidden": 32,
    "vision_layers": 2,
    "crop_size": 28,
    "patch_size": 7,
    "num_crops": 1,
    "vocab": 340,
}
SMALL_PACK: dict[str, Any] = {
    "samples": 2,
    "words": 8,
    "labels": 4,
    "grid": (1, 1),
    "chunks": {"crop_chunks": 1, "label_chunks": 1},
}
# Every tensor of some size goes back to the system when it is freed, so that the peak is of what lives together.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}


def write_model(folder: Path, sizes: Sizes) -> None:
    """A model of these sizes with random weights; no tokenizer, for none is needed."""
    torch.manual_seed(0)
    Phi3VForCausalLM(tiny_config(sizes, sizes.vocab, {"<|endoftext|>": sizes.vocab})).save_pretrained(folder)


def filled_pack(sizes: Sizes, *, samples: int, words: int, labels: int, grid: tuple[int, int], chunks: dict[str, int]):
    """A pack of alike samples of one picture each."""
    side = sizes.crop_size // sizes.patch_size // 2
    encoded = []
    crops = []
    for number in range(samples):
        one = sample(number, words, [grid], answer=labels, crop_size=sizes.crop_size, side=side)
        ids = one["input_ids"].numpy()
        encoded.append(
            Encoded(
                key=str(number),
                input_ids=ids,
                labels=one["labels"].numpy(),
                crops=one["crops"].numpy(),
                grids=np.array([grid]),
            )
        )
        crops.append(encoded[-1].crops)
    return assemble(encoded, crops=np.concatenate(crops), number=0, **chunks)


def load(config: Config, values: dict[str, Any], world: World) -> torch.nn.Module:
    """The model with all its weights in memory: where nothing is partitioned, they are a file's mapped pages."""
    model = load_model(config, Path(config.model.path), values, world)
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.clone()
    return model


def warm_up(case: dict[str, Any], folder: Path, world: World) -> None:
    """Train a model of next to no size, so that what is imported and made at first use counts as idle."""
    sizes = Sizes(**TINY)
    config, values = settings_of(case, folder, world)
    engine = Engine(load(config, values, world), config, values, world)
    engine.train_pack(filled_pack(sizes, **SMALL_PACK), 0, 1e-3)
    engine.step(1e-4)
    engine.deepspeed.destroy()


def settings_of(case: dict[str, Any], folder: Path, world: World) -> tuple[Config, dict[str, Any]]:
    """A case's configuration with a model folder, and DeepSpeed's."""
    config = validate(case["settings"] | {"model": case["settings"]["model"] | {"path": str(folder)}}, "case")
    return config, compose(config, read(config), world.size)


def measure(folder: Path, case: dict[str, Any]) -> dict[str, int]:
    """What this rank took, by stage."""
    world = join()
    warm_up(case, folder / "tiny", world)
    batch = filled_pack(Sizes(**case["sizes"]), **case["pack"])
    config, values = settings_of(case, folder / "model", world)
    gc.collect()
    idle = status_bytes("VmRSS")
    found = {"idle": idle, "tokens": len(batch.input_ids), "crops": len(batch.crops)}

    def stage(name: str) -> None:
        found[name] = max(found.get(name, 0), status_bytes("VmHWM") - idle)
        found[f"{name} left"] = status_bytes("VmRSS") - idle
        gc.collect()
        reset_peak()

    model = load(config, values, world)
    stage("load")
    engine = Engine(model, config, values, world)
    del model
    stage("start")
    for step in range(STEPS):
        for number in range(PACKS):
            engine.train_pack(batch, step, 1e-3)
            stage(f"pack {number}")
        engine.step(1e-4)
        stage("step")
    found["peak"] = max(found[name] for name in ("start", "pack 0", "pack 1", "step"))
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps(measure(place.parent, json.loads(place.read_text()))), flush=True)
    torch.distributed.barrier()
    end_at_once(0)
