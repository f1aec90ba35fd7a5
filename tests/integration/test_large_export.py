"""An export of a large checkpoint takes the memory of a few tensors, and a killed one leaves nothing that loads."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.factories.trained import make_shards, save
from train.config import dump, validate
from train.model import Phi3VForCausalLM
from train.model.tiny import Sizes, make

# About 500 million parameters: 2 GB in float32, 16 heads of 64.
LARGE = Sizes(
    hidden=1024, layers=40, vision_hidden=256, vision_layers=3, crop_size=28, patch_size=14, num_crops=2, vocab=420
)
MEASURE = """
import sys
from pathlib import Path
from train.export import export
from tests.factories.memory import Peak
peak = Peak()
peak.start()
export(Path(sys.argv[1]), Path(sys.argv[2]))
peak.ended.set()
peak.join()
print(peak.most - peak.base)
"""


def untrained_run(folder: Path, sizes: Sizes) -> Path:
    """A run whose checkpoint is the base's weights, as two ranks would write them."""
    shards = make_shards(folder / "shards")
    make(folder / "base", shards, sizes, seed=0)
    run = folder / "runs/one"
    run.mkdir(parents=True)
    values = {
        "run": {"name": "one", "folder": str(folder / "runs")},
        "model": {"path": str(folder / "base"), "precision": "fp32"},
        "data": {"shards": str(shards)},
        "wandb": {"mode": "disabled"},
    }
    config = validate(values, "test")
    (run / "config.yaml").write_text(dump(config))
    save(run, Phi3VForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), config, 5, None)
    return run


@pytest.mark.soak
def test_export_of_two_gigabytes_takes_the_memory_of_a_few_tensors(root: Path, tmp_path: Path) -> None:
    run = untrained_run(tmp_path, LARGE)
    command = [sys.executable, "-c", MEASURE, str(run), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "out/model.safetensors"
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    largest = max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
    peak = int(done.stdout)
    size = weights.stat().st_size
    print(f"{size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB: {peak / 1e6:.0f} MB more than the imports")
    assert size > 1.7e9
    assert peak < 500e6 + 4 * largest


@pytest.mark.soak
def test_a_killed_export_leaves_no_folder_that_loads(root: Path, tmp_path: Path) -> None:
    small = Sizes(
        hidden=256, layers=4, vision_hidden=64, vision_layers=3, crop_size=28, patch_size=14, num_crops=2, vocab=420
    )
    run, place = untrained_run(tmp_path, small), tmp_path / "exports"
    command = [sys.executable, "-m", "train.export", str(run), str(place / "out")]
    killed = 0
    for pause in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (place.is_dir() and any(place.iterdir())) and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(pause)
        process.kill()
        process.wait()
        if (place / "out/config.json").is_file():
            break
        killed += 1
        for folder in place.iterdir():
            with pytest.raises((ValueError, OSError)):
                Phi3VForCausalLM.from_pretrained(folder)
    assert killed >= 2
    if not (place / "out/config.json").is_file():
        subprocess.run(command, cwd=root, check=True, timeout=300)
    listed = dict(reversed(line.split("  ")) for line in (place / "out/SHA256SUMS").read_text().splitlines())
    assert {name: hashlib.sha256((place / "out" / name).read_bytes()).hexdigest() for name in listed} == listed
    assert [path.name for path in place.iterdir()] == ["out"]
    Phi3VForCausalLM.from_pretrained(place / "out")
