"""Which W&B mode is taken, and that its troubles end nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.factories.wandb_record import artifact_files, ended_record, records
from train.asking import Answers
from train.config_schema import WandbSection
from train.console import Console
from train.reporting import Report
from train.runs import RunFolder
from train.score.fields import Prediction, read_predictions
from train.score.report import Shown, thumbnail
from train.tracking import BASE, Tracker, choose_mode, gain_over_base, said_of

CASES = [
    ("step-000020", 0.1, "excludes zero in 1 of 1 scores (title exact)"),
    ("step-000020", -0.1, "excludes zero in 0 of 1 scores"),
    ("step-000010", 0.1, "is not measured"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
        ("auto", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {}, "offline"),
    ],
)
def test_auto_takes_the_environment_then_a_key_then_offline(
    home: Path, setting: str, environment: dict[str, str], mode: str
) -> None:
    assert choose_mode(setting, environment) == mode


def test_a_key_in_netrc_counts(home: Path) -> None:
    (home / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (home / ".netrc").chmod(0o600)
    assert choose_mode("auto", {}) == "online"
    assert choose_mode("auto", {"WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"


def test_a_failing_service_is_told_once_and_training_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    fake = SimpleNamespace(log=refuse, finish=refuse, dir=str(home))
    module = SimpleNamespace(init=lambda **kwargs: fake, Settings=lambda **kwargs: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Tracker(WandbSection(mode="offline"), home, "name", {})
    tracker.log(1, {"loss": 1.0})
    tracker.log(2, {"loss": 1.0})
    tracker.finish()
    assert capsys.readouterr().out.count("ConnectionError: no route") == 1


def test_a_run_keeps_its_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    module = SimpleNamespace(init=lambda **kwargs: ids.append(kwargs["id"]), Settings=lambda **kwargs: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        Tracker(WandbSection(mode="offline"), home, "name", {})
    assert ids[0] == ids[1]


def scores(checkpoint: str, low: float) -> str:
    """As evaluation/scores.json has them, of one score."""
    gain = {"value": 0.2, "low": low, "high": 0.3}
    models = [{"name": BASE, "gain": gain, "better": low > 0}]
    return json.dumps({"checkpoint": checkpoint, "scores": [{"field": "title", "metric": "exact", "models": models}]})


def best_run(folder: Path) -> Path:
    """A run folder with a best checkpoint."""
    checkpoint = folder / "spring/checkpoints/step-000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "rank-00000.safetensors").write_bytes(b"weights")
    best = {"step": 20, "checkpoint": "checkpoints/step-000020", "loss": 1.25}
    (folder / "spring/best.json").write_text(json.dumps(best))
    return folder / "spring"


@pytest.mark.parametrize(("checkpoint", "low", "words"), CASES)
def test_the_gain_over_the_base_is_told_of_the_checkpoint_that_was_measured(
    tmp_path: Path, checkpoint: str, low: float, words: str
) -> None:
    run = best_run(tmp_path)
    assert said_of(gain_over_base(run, "step-000020")) == "its gain over the base model is not measured"
    (run / "evaluation").mkdir()
    (run / "evaluation/scores.json").write_text(scores(checkpoint, low))
    assert words in said_of(gain_over_base(run, "step-000020"))


def offline_record(run: Path) -> bytes:
    """What W&B wrote beside an offline run, without the heads of the blocks that may cut a word."""
    return b"".join(record.SerializeToString() for record in records(ended_record(run)))


@pytest.mark.parametrize("most_gb", [2.0, 0.0])
def test_the_best_model_is_an_artifact_of_an_offline_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, most_gb: float
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DATA_DIR", str(home / "data"))
    run = best_run(home)
    (run / "evaluation").mkdir()
    (run / "evaluation/scores.json").write_text(scores("step-000020", 0.1))
    tracker = Tracker(WandbSection(mode="offline", artifact_gb=most_gb), run, "spring", {})
    tracker.best_model()
    assert tracker.run is not None
    tracker.finish()
    record = offline_record(run)
    for words in (
        b"spring-best",
        b"excludes zero in 1 of 1 scores (title exact)",
        b"validation loss 1.2500",
        b"step-20",
    ):
        assert words in record
    staged = [file for file in (home / "data").rglob("*") if file.is_file()]
    assert any(file.read_bytes() == b"weights" for file in staged) == (most_gb > 0)
    assert ((run / "checkpoints/step-000020/rank-00000.safetensors").as_uri().encode() in record) == (most_gb == 0)


def test_answers_of_a_step_stand_in_the_run_and_in_a_table_of_an_offline_record(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    run = RunFolder(home / "spring")
    run.path.mkdir()
    said = Prediction(key="k-1", answer="It is red.", fields={"colour": "red"}, logprob=-0.5)
    shown = Shown(
        key=said.key,
        thumbnails=(thumbnail(Image.new("RGB", (8, 8), "red")),),
        truths={"colour": "blue"},
        predicted=said.fields,
        answer=said.answer,
        logprob=said.logprob,
    )
    bare = replace(shown, key="k-2", thumbnails=())
    tracker = Tracker(WandbSection(mode="offline"), run.path, "spring", {})
    report = Report(run, Console(True), tracker)
    found = Answers(numbers={}, seconds=1.0, predictions=[said], shown=[shown, bare], fields={"colour": "category"})
    report.answers(7, found)
    assert tracker.run is not None
    tracker.finish()
    assert read_predictions(run.path / "answers/step-000007.jsonl") == [said]
    record = ended_record(run.path)
    assert b"validation/predictions" in offline_record(run.path)
    tables = [file for name, file in artifact_files(record).items() if name.endswith(".table.json")]
    table = json.loads(tables[0].read_text())
    assert table["columns"][:3] == ["key", "picture", "answer"]
    first, second = table["data"]
    assert (first[0], first[2], first[4:]) == ("k-1", "It is red.", ["blue", "red", False])
    assert first[1]["_type"] == "image-file"
    assert (second[0], second[1]) == ("k-2", None)


def test_a_run_without_a_best_checkpoint_has_no_artifact(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[object] = []
    fake = SimpleNamespace(log_artifact=logged.append, dir=str(home))
    module = SimpleNamespace(init=lambda **kwargs: fake, Settings=lambda **kwargs: None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Tracker(WandbSection(mode="offline"), home, "name", {})
    tracker.best_model()
    assert logged == []
    assert tracker.run is fake


def test_disabled_never_imports_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(WandbSection(mode="disabled"), home, "name", {})
    tracker.log(1, {"loss": 1.0})
    tracker.finish()
