"""fp16 on two ranks: the losses of fp32, under both stages, full and LoRA."""

import json
import subprocess

import pytest

from tests.distributed.conftest import LIMIT_S, ROOT, Bench, environment

SETTINGS = ("stop.steps=8", "data.validation=none", "evaluate.every_steps=0", "optim.loss_scale_power=10")


@pytest.mark.soak
@pytest.mark.parametrize(("file", "method"), [("zero3", "full"), ("zero2", "full"), ("zero3", "lora")])
def test_two_ranks_train_in_fp16_to_the_losses_of_fp32(bench: Bench, file: str, method: str) -> None:
    losses = {}
    for precision in ("fp32", "fp16"):
        name = f"{precision}-{file}-{method}"
        given = (f"deepspeed=ds_configs/{file}.json", f"tune.method={method}", f"model.precision={precision}")
        command = bench.command(2, name, *SETTINGS, *given)
        place = command.index("train/main.py")
        command[place : place + 1] = ["-m", "tests.factories.faulty"]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(FAULT=json.dumps({"half": True})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert ended.returncode == 0, ended.stdout
        lines = bench.lines(name)
        assert [line for line in lines if line["grad_norm"] is None] == []
        losses[precision] = [line["loss"] for line in lines]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=2e-2)
    assert losses["fp16"] != losses["fp32"]
