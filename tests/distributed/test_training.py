"""Full fine-tuning on 1, 2 and 3 ranks: the same batches, the same losses."""

import json
from collections.abc import Callable

import pytest

from tests.distributed.conftest import ROOT, Bench
from train.checkpoint import Manifest, full_tensors
from train.keeping import found, newest

COUNTS = ("label_tokens", "tokens", "pictures", "samples", "packs", "bad", "lr", "epoch")


def assert_same_training(bench: Bench, one: str, other: str) -> None:
    """The same batches; losses within 1e-5 at the first step, within 1e-4 of each other after 20."""
    left, right = bench.lines(one), bench.lines(other)
    assert len(left) == len(right) == 20
    for a, b in zip(left, right, strict=True):
        assert [a[name] for name in COUNTS] == [b[name] for name in COUNTS]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert left[0]["loss"] == pytest.approx(right[0]["loss"], abs=1e-5)
    assert left[-1]["loss"] == pytest.approx(right[-1]["loss"], rel=1e-4)
    for a, b in zip(bench.lines(one, "validation"), bench.lines(other, "validation"), strict=True):
        assert (a["step"], a["label_tokens"], a["samples"]) == (b["step"], b["label_tokens"], b["samples"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.soak  # three ranks: also in test_resume
@pytest.mark.parametrize("ranks", [2, 3])
def test_more_ranks_train_the_same_batches_to_the_same_losses(
    bench: Bench, trained: Callable[..., str], ranks: int
) -> None:
    assert_same_training(bench, trained(1), trained(ranks))


@pytest.mark.soak
def test_zero2_trains_as_zero3_does(bench: Bench, trained: Callable[..., str]) -> None:
    assert_same_training(bench, trained(1), trained(2, "zero2", "deepspeed=ds_configs/zero2.json"))


@pytest.mark.soak
def test_compiled_kernels_train_to_the_same_losses(bench: Bench, trained: Callable[..., str]) -> None:
    assert_same_training(bench, trained(1), trained(2, "compiled", "model.compile=true"))


def test_the_loss_falls_and_the_run_says_how_it_ended(bench: Bench, trained: Callable[..., str]) -> None:
    name = trained(2)
    lines = bench.lines(name)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["step"] for line in bench.lines(name, "validation")] == [6, 12, 18, 20]
    status = bench.status(name)
    assert status == {
        "state": "finished",
        "step": 20,
        "steps": 20,
        "checkpoint": "checkpoints/step-000020",
        "reason": "stop.steps = 20",
    }
    best = min(bench.lines(name, "validation"), key=lambda line: line["loss"])
    assert json.loads((bench.runs / name / "best.json").read_text())["step"] == best["step"]


def test_a_checkpoint_holds_every_trained_parameter_whole(bench: Bench, trained: Callable[..., str]) -> None:
    from train.model import Phi3VForCausalLM

    run = bench.runs / trained(2)
    assert [folder.name for folder in found(run)] == ["step-000006", "step-000012", "step-000018", "step-000020"]
    folder = newest(run)
    assert folder is not None
    assert folder.name == "step-000020"
    assert Manifest.load(folder).adam_step == 20
    start = Phi3VForCausalLM.from_pretrained(bench.folder / "model")
    expected = {name: value for name, value in start.named_parameters() if value.requires_grad}
    saved = dict(full_tensors(folder))
    assert {name: value.shape for name, value in saved.items()} == {
        name: value.shape for name, value in expected.items()
    }
    changed = [name for name, value in saved.items() if not value.equal(expected[name])]
    assert set(expected) - set(changed) <= {name for name in expected if name.endswith("k_proj.bias")}


def test_a_finished_run_says_so_and_is_left_as_it_is(bench: Bench, trained: Callable[..., str]) -> None:
    name = trained(1)
    before = (bench.runs / name / "metrics.jsonl").read_bytes()
    ended = bench.train(1, name)
    assert ended.returncode == 0
    assert "is finished: 20 steps" in ended.stdout
    assert (bench.runs / name / "metrics.jsonl").read_bytes() == before


DS_CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("file", "method"),
    [(file, method) for file in DS_CONFIGS for method in ("full", "lora")],
)
def test_every_deepspeed_file_trains_five_steps_on_two_ranks_or_says_why(bench: Bench, file: str, method: str) -> None:
    name = f"{file}-{method}"
    # A layer that ZeRO-3 gathers as a whole may run once a pass, so the tower takes all crops at once.
    settings = (f"deepspeed=ds_configs/{file}.json", f"tune.method={method}", "model.crops_per_chunk=64")
    ended = bench.train(2, name, *settings, "stop.steps=5")
    if (file, method) == ("zero3_small", "lora"):
        assert ended.returncode != 0
        assert "tune.method: lora does not go with leaf_module of ds_configs/zero3_small.json" in ended.stdout
        assert not bench.lines(name)  # no step was taken
        return
    assert ended.returncode == 0, ended.stdout
    assert bench.status(name)["state"] == "finished"
    losses = [line["loss"] for line in bench.lines(name)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
