"""Learning rates by part under ZeRO: each part moves at its own, and a run goes on with them to the bit."""

import json

import pytest

from tests.distributed.conftest import Bench
from train.checkpoint import full_tensors
from train.model import Phi3VForCausalLM
from train.model.lora import parts_of

RATES = {"vision": 1e-4, "projection": 2e-4, "text": 1e-3, "embeddings": 2e-3, "head": 4e-3}
"""`text` has the rate of all parts without one of their own."""
SETTINGS = (
    "optim.lr=1.0e-3",
    f"optim.lr_by_part={json.dumps({part: rate for part, rate in RATES.items() if part != 'text'})}",
    "optim.schedule=constant",
    "optim.warmup_steps=0",
    "optim.weight_decay=0.0",
    "checkpoint.every_steps=1",
    "data.validation=none",
    "evaluate.every_steps=0",
)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [2, 3])
def test_each_part_moves_at_its_own_rate_and_goes_on_with_it(bench: Bench, stage: int) -> None:
    given = (*SETTINGS, f"deepspeed=ds_configs/zero{stage}.json")
    straight, resumed = f"rates-zero{stage}", f"rates-zero{stage}-resumed"
    ended = bench.train(2, straight, *given, "stop.steps=6")
    assert ended.returncode == 0, ended.stdout
    # Adam's first step moves a weight by its rate, whatever the size of the gradient.
    start = dict(Phi3VForCausalLM.from_pretrained(bench.folder / "model").named_parameters())
    moved = dict.fromkeys(RATES, 0.0)
    for name, value in full_tensors(bench.runs / straight / "checkpoints/step-000001"):
        moved[parts_of(name)] = max(moved[parts_of(name)], float((value - start[name].detach()).abs().max()))
    assert moved == pytest.approx(RATES, rel=5e-3)
    for step in (3, 6):
        ended = bench.train(2, resumed, *given, f"stop.steps={step}")
        assert ended.returncode == 0, ended.stdout
    assert "going on from" in ended.stdout
    files = sorted((bench.runs / straight / "checkpoints/step-000006").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        assert file.read_bytes() == (bench.runs / resumed / "checkpoints/step-000006" / file.name).read_bytes()
    for line in bench.lines(resumed):
        assert {part: line[f"lr_{part}"] for part in RATES if part != "text"} == pytest.approx(
            {part: rate for part, rate in RATES.items() if part != "text"}
        )
