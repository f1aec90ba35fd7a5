"""What a run's plan says before and after training: the dry run, the check of a run's steps, the mixture's lines."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.schema import UserError
from tests.factories.small_shards import SmallShards, small_shards
from train.config import validate
from train.dry_run import dry_run
from train.material import Geometry
from train.mixture import Mixture
from train.pipeline.opening import record_of
from train.pipeline.plan import Plan
from train.pipeline.sharing import Alone
from train.pipeline.verify import main, step_digest, verify
from train.planning import describe_over_long, open_training
from train.stopping import last_step


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    built = small_shards(tmp_path_factory.mktemp("shards"))
    sizes = {"num_crops": 4, "crop_size": 56, "tokens_per_side": 2}
    (built.folder / "preprocessor_config.json").write_text(json.dumps(sizes))
    for name in ("config.json", "model.safetensors"):
        (built.folder / name).write_text("{}")
    return built


def config_of(built: SmallShards, folder: Path, **data: Any) -> Any:
    values = {
        "run": {"folder": str(folder)},
        "model": {"path": str(built.folder)},
        "data": {"shards": str(built.folder), "pack_length": 256, "window": 64, "workers": 0} | data,
        "batch": {"global_batch_packs": 4},
        "stop": {"epochs": 1.5},
    }
    return validate(values, "test")


def planned(built: SmallShards, folder: Path, **data: Any) -> Plan:
    geometry = Geometry(num_crops=4, crop_size=56, tokens_per_side=2)
    return open_training(config_of(built, folder, **data), built.folder, geometry, Alone(), None)


def test_a_dry_run_says_what_an_epoch_amounts_to_and_shows_the_first_pack(built: SmallShards, tmp_path: Path):
    config = config_of(built, tmp_path)
    plan = planned(built, tmp_path)
    text = "\n".join(dry_run(config))
    figures = plan.figures()
    total = last_step(plan, config.stop).steps
    assert total == plan.steps_in(0) + -(-plan.steps_in(1) // 2)
    assert (
        f"60 samples in {figures.packs} packs of 256 tokens, {figures.steps} steps of 4 packs; the run: {total}" in text
    )
    assert f"fill {figures.fill:.2%}; the most that these lengths allow: " in text
    assert (
        f"{plan.lengths.crops.size and int(plan.corpus.indexes[0].picture_counts.sum())} pictures, from 3 shards"
        in text
    )
    assert f"       4* {figures.packs:7,} {figures.steps:7,}" in text
    assert "on 4 ranks: " in text
    made = re.search(r"the loader makes ([\d,.]+) packs a second here with 0 workers", text)
    needed = re.search(r"takes ([\d,.]+) of these packs a second of the published model: (\d+) workers a GPU", text)
    assert made
    assert needed
    per_worker, asked = (float(found[1].replace(",", "")) for found in (made, needed))
    assert int(needed[2]) == pytest.approx(asked / per_worker, rel=0.01, abs=1.01)
    said = {sample.key: sample.messages[1]["content"] for sample in built.samples["train"]}
    for sample in plan.batch(0).packs[0].samples:
        key = plan.key(sample)
        line = next(line for line in text.splitlines() if line.startswith(f"  {key} ("))
        before, _, learned = line.rstrip("'").rpartition("<|assistant|>[")
        assert learned.strip() == f"{said[key]}<|end|>]"
        assert "[" not in before
        assert f"({plan.lengths.tokens[sample]} tokens)" in line


def write_run(plan: Plan, built: SmallShards, run: Path, steps: int) -> Path:
    run.mkdir()
    (run / "plan.json").write_text(json.dumps(record_of(plan, built.tokenizer, None)))
    lines = [{"kind": "train", "step": step + 1, "keys": step_digest(plan, step)} for step in range(steps)]
    lines.insert(2, {"kind": "validation", "step": 2})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_steps_of_a_run_are_held_against_its_plan(
    built: SmallShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = write_run(planned(built, tmp_path), built, tmp_path / "run", 9)
    assert verify(run) == (9, None)
    assert main(["verify", str(run)]) == 0
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[7] = json.dumps(json.loads(lines[7]) | {"keys": "0" * 16})
    metrics.write_text("\n".join(lines) + "\n")
    assert verify(run) == (7, 7)
    assert main(["verify", str(run)]) == 1
    assert "step 7 was trained on other samples" in capsys.readouterr().out
    record = json.loads((run / "plan.json").read_text())
    record["spec"]["version"] = 1
    (run / "plan.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="a plan of version 1"):
        verify(run)
    assert main(["verify", str(tmp_path)]) == 2


def test_what_a_plan_is_made_again_from_is_small(built: SmallShards, tmp_path: Path):
    assert len(json.dumps(record_of(planned(built, tmp_path), built.tokenizer, tmp_path))) < 10_000


def test_the_mixtures_shares_are_counted_over_the_whole_run(built: SmallShards, tmp_path: Path):
    other = small_shards(tmp_path / "other", seed=5, shards=1)
    sets = [{"path": str(built.folder), "weight": 0.25}, {"path": str(other.folder), "weight": 0.75}]
    plan = planned(built, tmp_path, shards=sets, mix_by="tokens")
    metrics = tmp_path / "metrics.jsonl"
    straight = Mixture(plan, metrics, 0)
    lines = [straight.add(step) for step in range(20)]
    metrics.write_text(
        "".join(json.dumps({"kind": "train", "step": n + 1} | line) + "\n" for n, line in enumerate(lines))
    )
    resumed = Mixture(plan, metrics, 12)
    assert [resumed.add(step) for step in range(12, 20)] == lines[12:]
    samples = [s for step in range(20) for pack in plan.batch(step).packs for s in pack.samples]
    tokens = plan.lengths.tokens[samples]
    assert lines[-1]["drawn"]["other"] == [sum(s >= 60 for s in samples), int(tokens[np.array(samples) >= 60].sum())]
    assert lines[-1]["mixture"]["other"] == pytest.approx(0.75, abs=0.06)
    assert Mixture(planned(built, tmp_path), metrics, 12).add(12) == {}


def test_samples_too_long_are_listed_with_what_becomes_of_them(built: SmallShards, tmp_path: Path):
    plan = planned(built, tmp_path, over_long="fewer_crops", pack_length=80)
    listed = [json.loads(line) for line in describe_over_long(plan).splitlines()]
    assert {line["rule"] for line in listed} == {"skip", "fewer_crops"}
    for line in listed:
        assert (line["tokens"] > 80) == (line["rule"] == "skip")
    assert sum(line["rule"] == "skip" for line in listed) == plan.figures().over_long
    assert sum(line["rule"] == "fewer_crops" for line in listed) == plan.figures().cut_down
