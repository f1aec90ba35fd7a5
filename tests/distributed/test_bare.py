"""The bare command: the published model by its hub name, shards under shards/, nothing else said."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.distributed.conftest import LIMIT_S, ROOT, Bench, environment


def fill_cache(home: Path, name: str, model: Path) -> None:
    """Lay a model into a Hugging Face cache as if it had been downloaded under that name."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(model, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)


def test_the_bare_command_trains_the_published_name_on_all_local_ranks(bench: Bench, tmp_path: Path) -> None:
    fill_cache(tmp_path / "home", "microsoft/Phi-3-vision-128k-instruct", bench.folder / "model")
    (tmp_path / "shards").symlink_to(bench.folder / "shards")
    deepspeed = Path(sys.executable).with_name("deepspeed")
    ended = subprocess.run(
        [deepspeed, "--hostfile", "launch/hosts", ROOT / "train/main.py"],
        cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1", LOCAL_SIZE="2", WANDB_MODE="disabled"),
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
