"""The whole way on real photographs: shards, training of the small model, scores on the validation rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from data.images import open_picture
from data.shards import iter_samples
from train.score.metrics import MACRO_F1
from train.score.scores import Estimate, Truth, rows_of

SIDE = 32
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


def linear_classifier(shards: Path) -> Estimate:
    """The macro-F1 of a baseline that does look: logistic regression on small pictures' pixels."""

    def pixels(split: str) -> tuple[np.ndarray, list[str]]:
        small, names = [], []
        for sample, pictures in iter_samples(shards, split):
            picture = open_picture(pictures[0]).convert("RGB").resize((SIDE, SIDE))
            small.append(np.asarray(picture).ravel() / 255)
            names.append(sample.target["category"])
        return np.stack(small), names

    known, names = pixels("train")
    seen, truths = pixels("validation")
    said = LogisticRegression(C=0.01, max_iter=300).fit(known, names).predict(seen).tolist()
    rows = rows_of(
        MACRO_F1,
        "category",
        "category",
        [Truth(key=str(row), group=str(row), values={"category": name}) for row, name in enumerate(truths)],
    )
    assert rows is not None
    return rows.estimate(rows.measure(said))


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
    ours = next(score for score in scores["scores"] if score["metric"] == "macro_f1")
    linear = linear_classifier(shards)
    value, low, high = (100 * ours["score"][end] for end in ("value", "low", "high"))
    print(
        f"macro-F1 {value:.1f} % ({low:.1f} to {high:.1f}); a linear classifier on {SIDE}×{SIDE} pixels "
        f"{100 * linear.value:.1f} % ({100 * linear.low:.1f} to {100 * linear.high:.1f})"
    )
    assert ours["baselines"][0]["better"]
    assert (run_folder / "report.html").stat().st_size < 30e6
