"""Write the tables of docs/memory.md anew from train/estimate: `python docs/make_memory.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from collections.abc import Iterator

from train.config import load, locate
from train.deepspeed_config import read
from train.estimate.loads import usual_load
from train.estimate.memory import KINDS, Estimate, estimate
from train.estimate.report import CROPS, GIB, Machine, on_gpu
from train.estimate.setup import Setup
from train.estimate.sizes import PUBLISHED

PAGE = ROOT / "docs/memory.md"
START, END = "<!-- tables: written by docs/make_memory.py -->", "<!-- end of tables -->"
MACHINES = (
    Machine(nodes=1, gpus=8, gpu_memory=80 * GIB),
    Machine(nodes=1, gpus=1, gpu_memory=24 * GIB),
)
RECIPES = ("full_8x80gb", "lora_8x80gb", "lora_24gb", "qlora_12gb", "full_24gb_offload")
BY_METHOD = ("full_8x80gb", "lora_24gb", "qlora_12gb")
FILES = ("zero2", "zero3", "zero3_offload")


def found(recipe: str, file: str, ranks: int, crops: int) -> Estimate:
    """A recipe's memory with a DeepSpeed file, of the published model."""
    config = load(locate(f"train/configs/{recipe}.yaml"), [f"deepspeed=ds_configs/{file}.json"])
    return estimate(Setup.of(config, read(config), PUBLISHED, ranks), usual_load(config, PUBLISHED, crops))


def possible(recipe: str, file: str) -> bool:
    """4-bit weights cannot be partitioned."""
    return not recipe.startswith("qlora") or file == "zero2"


def by_crops(machine: Machine) -> Iterator[str]:
    """What a GPU has to have, by recipe, DeepSpeed file and num_crops."""
    yield f"**{machine}**: GiB a GPU"
    yield ""
    yield "| recipe | deepspeed | " + " | ".join(f"num_crops {crops}" for crops in CROPS) + " | host memory |"
    yield "|---|---|" + "---|" * (len(CROPS) + 1)
    for recipe in BY_METHOD:
        for file in FILES:
            if not possible(recipe, file):
                continue
            all_found = [found(recipe, file, machine.ranks, crops) for crops in CROPS]
            cells = []
            for one in all_found:
                needed = on_gpu(one)
                cells.append(f"{needed / GIB:.1f}" + ("" if needed <= machine.gpu_memory else ", too much"))
            host = max(one.host for one in all_found) * machine.gpus / GIB
            yield f"| `{recipe}` | `{file}` | {' | '.join(cells)} | {f'{host:.0f} GiB' if host else '–'} |"
    yield ""


def by_kind() -> Iterator[str]:
    """What the memory of the recipes is taken for."""
    yield "What of, GiB a rank at its fullest moment, without what CUDA takes:"
    yield ""
    yield "| recipe | GPUs | " + " | ".join(KINDS) + " | together | moment |"
    yield "|---|---|" + "---|" * (len(KINDS) + 2)
    for recipe in RECIPES:
        config = load(locate(f"train/configs/{recipe}.yaml"))
        ranks = 8 if "8x" in recipe else 1
        peak = found(recipe, Path(config.deepspeed).stem, ranks, config.model.num_crops or 16).peak
        cells = " | ".join(f"{peak.bytes[kind] / GIB:.2f}" for kind in KINDS)
        yield f"| `{recipe}` | {ranks} | {cells} | {peak.total / GIB:.1f} | {peak.moment} |"


def tables() -> str:
    """All tables as Markdown."""
    return "\n".join([*(line for machine in MACHINES for line in by_crops(machine)), *by_kind()])


def page(text: str) -> str:
    """The page with its tables as they should be now."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
