"""The bare command: the published model by its hub name, shards under shards/, nothing else said."""

import json
import subprocess
import sys
from pathlib import Path

from tests.distributed.conftest import LIMIT_S, ROOT, Bench, environment
from tests.factories.published_name import fill_cache


def test_the_bare_command_trains_the_published_name_on_all_local_ranks(bench: Bench, tmp_path: Path) -> None:
    found = fill_cache(tmp_path / "home", bench.folder / "shards")
    (tmp_path / "shards").symlink_to(bench.folder / "shards")
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
