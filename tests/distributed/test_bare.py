"""The bare command: the published model by its hub name, shards under shards/, nothing else said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import LIMIT_S, ROOT, environment
from tests.factories.published_name import fill_cache
from tests.factories.small_shards import small_shards


@pytest.mark.soak  # on one rank also among the README's commands
def test_the_bare_command_trains_the_published_name_on_all_local_ranks(tmp_path: Path) -> None:
    # Few samples: the published settings' long packs take a CPU many seconds each.
    small_shards(tmp_path / "shards", shards=1, per_shard=6, splits=("train", "validation"))
    found = fill_cache(tmp_path / "home", tmp_path / "shards")
    deepspeed = Path(sys.executable).with_name("deepspeed")
    ended = subprocess.run(
        [deepspeed, "--hostfile", "launch/hosts", ROOT / "train/main.py"],
        cwd=tmp_path,
        env=environment(**found, LOCAL_SIZE="2", WANDB_MODE="disabled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stdout
    assert "2 ranks on cpu, bf16" in ended.stdout
    status = json.loads((tmp_path / "runs/default/status.json").read_text())
    assert status["state"] == "finished"
    assert status["step"] > 0
