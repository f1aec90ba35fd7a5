"""What the dry run says of settings, memory and time, through the command itself."""

import json
from pathlib import Path

import pytest

from tests.factories.small_models import SIZES
from tests.factories.small_shards import small_shards
from train.main import main
from train.model.tiny import make


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with shards and a model."""
    folder = tmp_path_factory.mktemp("before")
    built = small_shards(folder / "shards", shards=1, per_shard=24)
    make(folder / "model", built.folder, SIZES, seed=0)
    path = folder / "mine.yaml"
    path.write_text(
        f"run: {{folder: {folder}/runs}}\nmodel: {{path: {folder}/model}}\nstop: {{steps: 20}}\n"
        f"data: {{shards: {built.folder}, pack_length: 256, window: 32, workers: 0}}\n"
        "batch: {global_batch_packs: 3}\n"
    )
    return path


def said(capsys: pytest.CaptureFixture[str], settings: Path, *arguments: str, code: int = 0) -> str:
    """What a dry run prints."""
    assert main(["--config", str(settings), "--dry-run", *arguments]) == code
    return capsys.readouterr().out


def test_it_names_owner_and_origin_of_each_value_and_whether_it_fits(
    capsys: pytest.CaptureFixture[str], settings: Path
) -> None:
    text = said(capsys, settings, "--gpus", "2", "--gpu-memory", "24GiB", "--rate", "1000", "--set", "optim.lr=1e-4")
    assert f"data.pack_length = 256   YAML, {settings}" in text
    assert "optim.lr = 0.0001   YAML, --set" in text
    assert "optim.eps = 1e-08   YAML, default" in text
    assert "zero_optimization.stage = 3   JSON, ds_configs/zero3.json" in text
    assert "packs a rank and step = 2   follows from 3 packs, 2 × 24 GiB GPUs" in text
    assert "memory a rank, GiB, on 2 × 24 GiB" in text
    assert "it fits: " in text
    assert "the run: 20 steps (stop.steps = 20), about " in text
    assert "hours at 1,000 tokens a second (as stated)" in text
    assert "the first pack, what is learned in [brackets]:" in text


def test_hours_are_counted_by_what_the_run_measured(capsys: pytest.CaptureFixture[str], settings: Path) -> None:
    assert "hours: no rate is known" in said(capsys, settings)
    run = settings.parent / "runs" / "mine"
    run.mkdir(parents=True)
    lines = [{"kind": "train", "step": step, "time": {"tokens_per_s": rate}} for step, rate in enumerate((9, 50, 51))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert f"hours at 50 tokens a second (the median of {run})" in said(capsys, settings)


def test_without_shards_it_says_the_memory_of_the_published_model_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    path = tmp_path / "none.yaml"
    path.write_text(f"data: {{shards: {tmp_path}/none}}\n")
    text = said(capsys, path, "--gpus", "1", "--gpu-memory", "24GiB", code=2)
    assert "parameters: 4,146,621,440, of which " in text
    assert "it does not fit: " in text
    assert " lora_24gb " in text.replace("*", " ")


@pytest.mark.parametrize("option", ["--nodes", "--gpus", "--rate"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_machine_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--dry-run", option, value])
    assert ended.value.code == 2
    assert f"argument {option}: '{value}' is no" in capsys.readouterr().err
