"""What must not be imported where: a worker with torch costs seconds and hundreds of megabytes, times workers."""

import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = Path(__file__).resolve().parents[2] / "train" / "pipeline"
HEAVY = ("torch", "transformers", "deepspeed", "peft", "datasets", "pandas", "wandb")


@pytest.mark.parametrize("module", sorted(path.stem for path in PIPELINE.glob("[a-z]*.py")))
def test_the_pipeline_imports_nothing_heavy(module: str, root: Path):
    program = f"import sys, train.pipeline.{module}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
