"""The public catalogue by its own name: out of the cache that datasets keeps, without network, and as its CSV."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from data.build import main as build
from data.manifest import Manifest
from data.sample.catalogue import URLS, rows_of, write_rows, write_sample
from data.sample.serve import picture_server
from data.shards import iter_samples

NAME = "DBQ/Burberry.Product.prices.United.States"
ROWS = 50
# A data set in the cache as the library leaves it after a download: made by its own builder of CSV data sets, under the
# folders that it gives to a data set of the hub.
CACHE_IT = f"""
import sys
from pathlib import Path
from datasets.packaged_modules.csv.csv import Csv
owner, name = {NAME!r}.split("/")
builder = Csv(cache_dir=sys.argv[2], dataset_name=name, hash="0" * 40, data_files={{"train": [sys.argv[1]]}})
builder.download_and_prepare()
made = Path(builder.cache_dir)
kept = Path(sys.argv[2]) / (owner + "___" + made.parents[2].name) / "default" / made.parent.name / made.name
kept.parent.mkdir(parents=True)
made.rename(kept)
"""


def test_burberry_from_the_cache_and_from_its_csv(root: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    write_sample(sample, ROWS, 0, 1)
    with picture_server(sample, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = rows_of(sample / URLS)
        rows[3]["imageurl"] = rows[17]["imageurl"] = ""
        rows[5]["imageurl"] += ".gone"
        write_rows(tmp_path / "burberry.csv", rows)
        environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        environment.pop("HF_DATASETS_CACHE", None)
        cached = [sys.executable, "-c", CACHE_IT, str(tmp_path / "burberry.csv"), str(tmp_path / "hf/datasets")]
        subprocess.run(cached, env=environment, check=True, timeout=1200)
        common = ["--preset", "burberry", "--workers", "0", "--allow-host", "127.0.0.1", "--max-rejected", "0.3"]
        of_hub = [*common, "--source", f"hf:{NAME}", "--output", str(tmp_path / "hub")]
        command = [sys.executable, "-m", "data.build", *of_hub]
        subprocess.run(command, cwd=root, env=environment, check=True, timeout=1200)
        assert build([*common, "--source", str(tmp_path / "burberry.csv"), "--output", str(tmp_path / "csv")]) == 0
        server.shutdown()
    found = []
    for name in ("hub", "csv"):
        out = tmp_path / name
        assert set(Manifest.load(out).shards) == {"train", "validation", "test"}
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        reasons = Counter(one["reason"] for one in rejected)
        assert (reasons["no-picture"], {one["row"] for one in rejected} >= {3, 5, 17}) == (2, True)
        found.append(
            {
                one.key: (split, one.messages, one.target, pictures)
                for split in ("train", "validation", "test")
                for one, pictures in iter_samples(out, split)
            }
        )
    assert found[0] == found[1]
    assert len(found[0]) + len(rejected) == ROWS
    assert next(iter(found[0].values()))[1][0]["content"] == "<|image_1|>What is shown in this image?"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_builder_alone_in_an_empty_environment(root: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(root / "constraints.txt")]
    done = subprocess.run([*pip, f"{root}[data]"], capture_output=True, text=True, check=False)
    if "connection" in done.stderr.lower() and done.returncode:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> str:
        ended = subprocess.run(
            [str(python), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("-m", "data.sample", "sample", "--rows", "200")
    assert "is whole" in run(
        "-m", "data.build", "--preset", "burberry", "--source", "sample/catalogue.csv", "--output", "shards"
    )
    assert "<|image_1|>What is shown in this image?" in run("-m", "data.show", "shards")
    run("-m", "data.show", "shards", "--html", "page.html")
    assert "is whole" in run("-m", "data.verify", "shards")
    torch = subprocess.run([str(python), "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in torch.stderr
