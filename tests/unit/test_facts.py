"""What a run's folder tells: curves from its metrics, and a card that nothing in the data can break out of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.score.card import ScoresError, model_card
from train.score.comparing import CompareError, compare_runs
from train.score.facts import Facts, read_curve
from train.score.report import Curve

MODULES = (
    "fields",
    "metrics",
    "intervals",
    "baselines",
    "scores",
    "split",
    "charts",
    "report",
    "facts",
    "card",
    "upload",
    "slices",
    "comparing",
)


def facts(run: Path, **changes: object) -> Facts:
    values = {
        "run": run,
        "checkpoint": run / "checkpoints/step-000010",
        "step": 10,
        "model": {"method": "full"},
        "data": {"source": "a|b <img src=x>"},
        "splits": {"test": {"samples": 1234, "pictures": 1234, "bytes": 1}},
        "rejected": {"truncated": 3},
        "curve": Curve(),
        "config": "",
        "versions": {},
        "commands": [],
    }
    return Facts(**(values | changes))  # type: ignore[arg-type]


def test_curves_pass_over_cut_lines_and_skipped_steps(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "kind": "train", "loss": 3.0, "lr": 0.1},
        {"step": 2, "kind": "train", "loss": None, "lr": 0.2},
        {"step": 2, "kind": "validation", "loss": 2.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "ki')
    curve = read_curve(tmp_path / "metrics.jsonl")
    assert curve == Curve(train_loss=[(1, 3.0)], validation_loss=[(2, 2.5)], lr=[(1, 0.1), (2, 0.2)])
    assert read_curve(tmp_path / "none.jsonl") == Curve(train_loss=[], validation_loss=[], lr=[])


def test_the_card_shows_scores_of_the_exported_checkpoint_alone(tmp_path: Path) -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": None}
    score = {"label": "category: accuracy", "score": estimate, "baselines": [{"score": estimate}], "controls": []}
    verdicts = [{"good": False, "text": "Not shown to be better than a baseline that never looks: price."}]
    record = {"checkpoint": "step-000010", "samples": 9, "split": "test", "scores": [score], "verdicts": verdicts}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/scores.json").write_text(json.dumps(record))
    card = model_card(facts(tmp_path), "What?", "bf16")
    assert "| category: accuracy | 50.0 % (40.0 % … ∞) | 50.0 % (40.0 % … ∞) | – |" in card
    assert "- Not shown to be better than a baseline that never looks: price." in card
    other = facts(tmp_path, checkpoint=tmp_path / "checkpoints/step-000020")
    assert "Not evaluated" in model_card(other, "What?", "bf16")


def test_the_card_tells_of_adapters_where_there_were_some(tmp_path: Path) -> None:
    for method, said in (("LoRA, rank 8", True), ("QLoRA (4-bit base), rank 8", True), ("full fine-tuning", False)):
        card = model_card(facts(tmp_path, model={"method": method}), None, "bf16")
        assert ("adapters merged" in card) == said, method


@pytest.mark.parametrize("text", ["{broken", "[]"])
def test_damaged_scores_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/scores.json").write_text(text)
    for ask in (lambda: model_card(facts(tmp_path), None, "bf16"), lambda: compare_runs(tmp_path, tmp_path)):
        with pytest.raises(ScoresError, match=r"scores\.json is damaged .*; write it anew: python -m train\.evaluate"):
            ask()


def test_scores_of_an_older_form_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/scores.json").write_text('{"split": "test", "samples": 3}')
    with pytest.raises(CompareError, match="evaluated with fields None"):
        compare_runs(tmp_path, tmp_path)


def test_the_data_cannot_write_markup_into_the_card(tmp_path: Path) -> None:
    card = model_card(facts(tmp_path), "`what` <|image_1|>", "fp32")
    assert "a\\|b \\<img src=x\\>" in card
    assert "`` `what` <|image_1|> ``" in card


def test_scoring_imports_neither_torch_nor_transformers(root: Path) -> None:
    program = f"import sys, importlib\nfor name in {MODULES}: importlib.import_module('train.score.' + name)\n"
    program += "print(*(name for name in ('torch', 'transformers', 'deepspeed', 'wandb') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
