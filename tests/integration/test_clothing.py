"""The whole way on real photographs: shards, training of the small model, scores on the validation rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MAJORITY = 81 / 341
"""Share of the commonest category among the validation rows: what a model scores that never looks."""


def run(root: Path, *command: str) -> None:
    """Run a command in the root of the checkout; its output is shown where it fails."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": "2",
    }
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 0, command


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_small_model_tells_garments_in_photographs_better_than_the_majority(
    root: Path, material: Path, tmp_path: Path
) -> None:
    shards, model, run_folder = tmp_path / "shards", tmp_path / "model", tmp_path / "runs/clothing"
    python = [sys.executable, "-m"]
    run(root, *python, "data.build", "--preset", "clothing", "--source", f"{material}/clothing/rows.csv",
        "--output", str(shards))  # fmt: skip
    run(root, *python, "train.model.tiny", str(model), "--shards", str(shards))
    settings = [f"run.folder={tmp_path}/runs", f"model.path={model}", f"data.shards={shards}", "stop.epochs=12"]
    run(root, "deepspeed", "train/main.py", "--config", "train/configs/quickstart.yaml", "--run", "clothing",
        *(part for setting in settings for part in ("--set", setting)))  # fmt: skip
    run(root, *python, "train.evaluate", str(run_folder))
    scores = json.loads((run_folder / "evaluation/scores.json").read_text())
    accuracy = next(score for score in scores["scores"] if score["field"] == "category")
    assert accuracy["n"] == 341
    assert accuracy["score"]["low"] > MAJORITY
    assert accuracy["baselines"][0]["better"]
