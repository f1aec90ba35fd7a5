"""What a person is told before a run: each value with owner and origin, memory, what fits, how long. No torch."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.schema import UserError
from train.config import flatten, locate
from train.config_schema import Config
from train.deepspeed_config import read
from train.estimate.loads import planned_load, usual_load
from train.estimate.report import Machine, advice_lines, fitting_lines, memory_lines, parameter_lines
from train.estimate.setup import Setup
from train.estimate.sizes import PUBLISHED, ModelSizes
from train.material import find_model
from train.pipeline.plan import Plan
from train.stopping import earlier_rules, last_step

NAMES = ("microsoft/Phi-3-vision-128k-instruct", "microsoft/Phi-3.5-vision-instruct")
USUAL_CROPS = 16
"""Of the published models, where a configuration leaves it to them."""


def settings_lines(config: Config, set_by: Mapping[str, str], machine: Machine) -> Iterator[str]:
    """Each value, who owns it (the YAML, the JSON, or nobody: it follows from others) and where it was set."""
    yield "settings: value, owner, origin"
    for key, value in flatten(config.model_dump()).items():
        yield f"  {key} = {json.dumps(value)}   YAML, {set_by.get(key, 'default')}"
    for key, value in flatten(read(config)).items():
        yield f"  {key} = {json.dumps(value)}   JSON, {config.deepspeed}"
    packs = config.batch.global_batch_packs
    yield f"  packs a rank and step = {math.ceil(packs / machine.ranks)}   follows from {packs} packs, {machine} GPUs"


def sizes_of(config: Config) -> ModelSizes:
    """The sizes of the model: of its config.json, or of the published ones by their name.

    Raises UserError where it is neither at hand nor known.
    """
    try:
        folder = find_model(config.model.path)
    except UserError:
        if config.model.path not in NAMES:
            raise
        folder = None
    if folder is None:
        return PUBLISHED
    return ModelSizes.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def before_lines(config: Config, machine: Machine, plan: Plan | None) -> Iterator[str]:
    """Parameters, memory, what fits, what to change; `plan`: of the training, None for packs as pictures fill them."""
    try:
        sizes = sizes_of(config)
    except UserError:
        return  # what is missing is said anyway
    load = planned_load(plan, sizes) if plan else usual_load(config, sizes, config.model.num_crops or USUAL_CROPS)
    setup = Setup.of(config, read(config), sizes, machine.ranks)
    yield from parameter_lines(setup)
    yield from memory_lines(setup, load, machine)
    yield from advice_lines(config, sizes, load, machine)
    yield from fitting_lines(sizes, machine, locate("train/configs"), locate("ds_configs"))


def measured_rate(run: Path) -> float | None:
    """Tokens a second of a run's steps so far, the median; None where it has made fewer than three."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1] if metrics.is_file() else []
    steps = [line["time"]["tokens_per_s"] for line in map(json.loads, lines) if line["kind"] == "train"]
    return statistics.median(steps) if len(steps) >= 3 else None


def time_lines(config: Config, plan: Plan, rate: float | None) -> Iterator[str]:
    """Steps, tokens and, by a rate, hours. rate: tokens a second of all ranks; None for what the run measured."""
    end = last_step(plan, config.stop)
    rules = earlier_rules(config.stop)
    figures = plan.figures()
    tokens = int(figures.tokens / figures.steps * end.steps)
    early = f"; may end before by {rules}" if rules else ""
    yield f"the run: {end.steps:,} steps ({end.rule}), about {tokens:,} tokens{early}"
    run = Path(config.run.folder) / str(config.run.name)
    found = rate or measured_rate(run)
    if not found:
        yield "  hours: no rate is known; state one by --rate TOKENS, or train a few steps under this --run first"
        return
    source = "as stated" if rate else f"the median of {run}"
    yield f"  {tokens / found / 3600:.2f} hours at {found:,.0f} tokens a second ({source}), evaluation and saving apart"
