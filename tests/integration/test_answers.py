"""From a run's folder to scores, report, exported folder and an answer, by the commands a person types."""

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.factories.trained import ANSWER, PRODUCTS, QUESTION, example, make_run, make_shards
from tests.factories.wandb_record import artifact_files, ended_record, summary
from train.answering import Answerer
from train.evaluate import evaluate, main
from train.score.fields import read_predictions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    make_shards(folder / "shards")
    make_run(folder / "runs/one", folder / "shards", folder / "base")
    return folder


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the checkout."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=1200
    )


def test_evaluate_export_and_ask(root: Path, place: Path) -> None:
    run, out = place / "runs/one", place / "exported"
    done = command(root, "-m", "train.evaluate", str(run))
    assert done.returncode == 0, done.stderr
    assert "category: accuracy" in done.stdout
    assert "no score beats its baseline" in done.stdout
    scores = json.loads((run / "evaluation/scores.json").read_text())
    assert {score["metric"]: score["score"]["value"] for score in scores["scores"]} == {
        **dict.fromkeys(("exact", "normalised", "anls", "accuracy", "macro_f1"), 1.0),
        **dict.fromkeys(("within_5_percent", "within_10_percent", "within_25_percent"), 1.0),
        **dict.fromkeys(("median_percentage_error", "median_absolute_error", "median_log_error"), 0.0),
    }
    assert {control["name"] for control in scores["scores"][0]["controls"]} == {"shuffled", "blank", "no-picture"}
    assert scores["samples"] == len(read_predictions(run / "evaluation/predictions.jsonl")) == 18
    assert len(read_predictions(run / "evaluation/predictions-shuffled.jsonl")) == 18
    page = (run / "report.html").read_text()
    assert len(re.findall(r'"data:image/jpeg', page)) >= 18
    assert "http://" not in page
    assert "https://" not in page

    done = command(root, "train/export.py", str(run), str(out))
    assert done.returncode == 0, done.stderr
    assert "| category: accuracy | 100.0 %" in (out / "README.md").read_text()
    picture = place / "one.png"
    picture.write_bytes(example("x", 1)[1][0].data)
    done = command(root, "train/predict.py", str(out), str(picture), "--question", QUESTION)
    assert (done.returncode, done.stdout) == (0, ANSWER.format(**PRODUCTS[0]) + "\n"), done.stderr


def test_an_exported_folder_predicts_what_the_run_does(root: Path, place: Path, tmp_path: Path) -> None:
    from train.export import export
    from train.predict import main as predict

    export(place / "runs/one", tmp_path / "out")
    shards = str(place / "shards")
    for name, model in (("run", place / "runs/one"), ("out", tmp_path / "out")):
        assert predict([str(model), shards, "--output", str(tmp_path / f"{name}.jsonl")]) == 0
    assert (tmp_path / "run.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_evaluation_again_gives_the_same_files(place: Path) -> None:
    run = place / "runs/one"
    evaluate(run)
    first = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    evaluate(run)
    assert {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()} == first


def test_a_part_of_a_split_without_control(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(place / "runs/one"), "--split", "validation", "--control", "none", "--limit", "5"]) == 0
    assert "5 samples of" in capsys.readouterr().out
    scores = json.loads((place / "runs/one/evaluation/scores.json").read_text())
    assert (scores["split"], scores["samples"]) == ("validation", 5)
    assert all(score["controls"] == [] for score in scores["scores"])


def test_two_runs_are_compared_and_others_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "one", tmp_path / "two"
    shutil.copytree(place / "runs/one", run, ignore=shutil.ignore_patterns("evaluation", "report.html"))
    assert main(["--compare", str(run), str(run)]) == 2
    assert "was not evaluated" in capsys.readouterr().err
    assert main([str(run), "--control", "none", "--limit", "6"]) == 0
    shutil.copytree(run, other)
    said = other / "evaluation/predictions.jsonl"
    lines = [one | {"fields": dict.fromkeys(one["fields"])} for one in map(json.loads, said.read_text().splitlines())]
    said.write_text("".join(json.dumps(one) + "\n" for one in lines))
    capsys.readouterr()
    assert main(["--compare", str(other), str(run)]) == 0
    assert re.search(r"category: accuracy +0.0 % +100.0 % +\+100.0 .* better", capsys.readouterr().out)
    said.write_text("".join(json.dumps(one) + "\n" for one in lines[::-1]))
    assert main(["--compare", str(other), str(run)]) == 2
    assert "answers for other samples" in capsys.readouterr().err
    assert main([str(other), "--control", "none", "--limit", "5"]) == 0
    assert main(["--compare", str(other), str(run)]) == 2
    assert "evaluate both alike" in capsys.readouterr().err


def test_a_rate_is_told_only_where_all_was_answered_in_one_go(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "one"
    shutil.copytree(place / "runs/one", run, ignore=shutil.ignore_patterns("evaluation", "report.html"))
    answer, calls = Answerer.answer, []

    def ends_early(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the node is gone")
        return answer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer", ends_early)
        with pytest.raises(RuntimeError, match="the node is gone"):
            evaluate(run, batch_size=4, controls=())
    evaluate(run, batch_size=4, controls=())
    assert "samples a second" not in (run / "report.html").read_text()
    evaluate(run, batch_size=4, controls=())
    assert "samples a second" in (run / "report.html").read_text()


def test_one_sample_is_scored_without_the_control(place: Path) -> None:
    result = evaluate(place / "runs/one", limit=1)
    assert len(result.predictions) == 1
    assert all(score.controls == () for score in result.scores)


def test_what_cannot_be_evaluated_is_said_without_a_traceback(root: Path, place: Path) -> None:
    done = command(root, "-m", "train.evaluate", str(place / "runs/one"), "--split", "tset")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no split 'tset'" in done.stderr
    assert "Traceback" not in done.stderr
    assert main([str(place / "base")]) == 2


def test_the_table_goes_into_the_run_s_offline_record(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = make_run(tmp_path / "tracked", place / "shards", place / "base", steps=1)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("mode: disabled", "mode: offline"))
    (run / "wandb_id").write_text("abc123")
    result = evaluate(run, limit=4)
    assert result is not None
    record = ended_record(run)
    files = artifact_files(record)
    assert all(path.is_relative_to(run) for path in files.values())
    table = json.loads(files["evaluation/predictions.table.json"].read_text())
    predictions = read_predictions(run / "evaluation/predictions.jsonl")
    assert len(table["data"]) == len(predictions) == 4
    shown = report_samples((run / "report.html").read_text())
    for cells, prediction, sample in zip(table["data"], predictions, shown, strict=True):
        row = dict(zip(table["columns"], cells, strict=True))
        assert (row["key"], row["answer"], row["logprob"]) == (prediction.key, prediction.answer, prediction.logprob)
        assert {name: row[f"{name} said"] for name in prediction.fields} == prediction.fields
        thumbnail = base64.b64decode(sample["pictures"][0].partition(",")[2])
        ours, theirs = Image.open(io.BytesIO(thumbnail)), Image.open(files[row["picture"]["path"]])
        assert ours.tobytes() == theirs.convert("RGB").tobytes()
    numbers = summary(record)
    for score in result.scores:
        if math.isfinite(score.score.value):
            assert numbers[f"evaluation/{score.field}/{score.metric}"] == pytest.approx(score.score.value)


def report_samples(page: str) -> list[dict[str, Any]]:
    """The samples that a report shows."""
    found = re.search(r'<script type="application/json" id="samples">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    samples: list[dict[str, Any]] = json.loads(found[1])["samples"]
    return samples


def test_trouble_with_the_record_does_not_end_the_evaluation(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    run = make_run(tmp_path / "tracked", place / "shards", place / "base", steps=1)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("mode: disabled", "mode: offline"))
    (run / "wandb_id").write_text("abc123")

    def fail(**_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(wandb, "init", fail)
    assert evaluate(run, limit=2).report.is_file()
    assert "W&B is left out" in capsys.readouterr().out
