"""The builder as it is started: by module and by path, killed and started again, and read by others' code."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest
import webdataset

from data.manifest import Manifest
from data.shards import iter_samples

QUESTION = "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\n"


def command(root: Path, *arguments: object, by_path: bool = False) -> list[str]:
    start = [str(root / "data" / "build.py")] if by_path else ["-m", "data.build"]
    return [sys.executable, *start, *map(str, arguments)]


def run(root: Path, *arguments: object, by_path: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, *arguments, by_path=by_path),
        cwd=root if not by_path else "/",
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def contents(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] != "downloads"
    }


@pytest.fixture(scope="module")
def sample(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of a small sample catalogue."""
    folder = tmp_path_factory.mktemp("sample")
    subprocess.run(
        [sys.executable, "-m", "data.sample", str(folder), "--rows", "300", "--seed", "0"],
        cwd=root,
        check=True,
        timeout=1200,
        capture_output=True,
    )
    (path,) = folder.glob("*.csv")
    return path


@pytest.fixture(scope="module")
def shards(root: Path, sample: Path) -> Path:
    out = sample.parent / "shards"
    done = run(root, "--preset", "burberry", "--source", sample, "--output", out)
    assert done.returncode == 0, done.stderr
    return out


def test_the_sample_catalogue_becomes_the_walkthroughs_text(shards: Path) -> None:
    manifest = Manifest.load(shards)
    assert manifest.chat_template["name"] == "bare"
    assert manifest.fields == {"title": "text", "category": "category", "price": "number"}
    assert set(manifest.shards) == {"train", "validation", "test"}
    rows = []
    for split in manifest.shards:
        for one, pictures in iter_samples(shards, split):
            columns = one.source["columns"]
            text = "".join(f"<|{turn['role']}|>\n{turn['content']}<|end|>" for turn in one.messages)
            price = float(columns["full_price"])
            said = f"Product: {columns['title']}, Category: {columns['category3_code']}, Full Price: {price}<|end|>"
            assert text == QUESTION + said
            assert len(pictures) == 1
            rows.append(one.source["row"])
    rows += [json.loads(line)["row"] for line in (shards / "rejected.jsonl").read_text().splitlines()]
    assert sorted(rows) == list(range(300))
    assert {"no-picture", "missing-file", "truncated", "not-a-picture", "empty", "duplicate"} <= set(manifest.rejected)


def test_webdataset_alone_reads_every_shard(shards: Path) -> None:
    manifest = Manifest.load(shards)
    for split, counts in manifest.counts.items():
        paths = [str(shards / split / shard["name"]) for shard in manifest.shards[split]]
        read = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
        assert len(read) == counts["samples"]
        for one in read:
            assert set(one["json"]) == {"messages", "images", "target", "source"}
            for name in one["json"]["images"]:
                assert min(one[name].size) > 1


def test_the_same_bytes_for_any_number_of_workers_and_by_path(root: Path, sample: Path, shards: Path) -> None:
    out = sample.parent / "by-path"
    done = run(root, "--preset", "burberry", "--source", sample, "--output", out, "--workers", 3, by_path=True)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(shards)
    again = run(root, "--preset", "burberry", "--source", sample, "--output", out)
    assert "nothing to do" in again.stdout


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    found = [int(child) for child in listed.stdout.split()]
    return found + [grandchild for child in found for grandchild in children(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_and_started_again_it_makes_the_same_and_leaves_no_process(
    root: Path, sample: Path, shards: Path
) -> None:
    out = sample.parent / "killed"
    arguments = ("--preset", "burberry", "--source", sample, "--output", out)
    for pause, kill in ((0.6, os.kill), (1.5, os.killpg), (2.0, os.kill), (2.5, os.killpg)):
        process = subprocess.Popen(
            command(root, *arguments), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        time.sleep(pause)
        family = children(process.pid)
        kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in family):
            assert time.monotonic() < deadline, "workers outlive the program"
            time.sleep(0.1)
    done = run(root, *arguments)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(shards)


def killed(root: Path, out: Path, step: str, pauses: Iterator[float], *arguments: object) -> int:
    """Run a step, killing its whole process group after each pause, until it ends by itself. Returns the kills."""
    for kills in count():
        log = out.with_name("log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command(root, *arguments, "--only", step, "--output", out),
                cwd=root, stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
            try:
                assert process.wait(next(pauses)) == 0, log.read_text()
                return kills
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    raise AssertionError("a step ends at some time")


def disturbed(root: Path, sample: Path, folder: Path, expected: dict[str, str], kills: int, workers: int) -> None:
    """Build again and again with kills at random moments of each step, until each has had its number of them."""
    random, done = Random(workers), Counter[str]()
    arguments = ("--preset", "burberry", "--source", sample, "--workers", workers)
    for number in range(kills):
        out = folder / f"killed-{number}"
        for step in ("fetch", "split", "write"):
            # Most of a second goes by before a step does anything; pauses that grow let the last run through.
            left = kills - done[step]
            pauses = (random.uniform(0.5, 1.2 + 0.3 * n) if n < left else 300.0 for n in count())
            done[step] += killed(root, out, step, pauses, *arguments)
        assert contents(out) == expected
        if min(done.values()) >= kills:
            return
    raise AssertionError(f"in {kills} builds so many kills met a step at work: {done}")


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_fifty_kills_in_each_step(root: Path, sample: Path, shards: Path, tmp_path: Path, workers: int) -> None:
    disturbed(root, sample, tmp_path, contents(shards), kills=50, workers=workers)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_machines_that_are_killed_make_the_same(root: Path, sample: Path, shards: Path, tmp_path: Path) -> None:
    random, out = Random(3), tmp_path / "out"
    for step in ("fetch", "split", "write"):
        shares = [("--join",)] if step == "split" else [("--part", f"{number}/3") for number in (1, 2, 3)]
        for share in shares:
            pauses = (random.uniform(0.5, 3) if n < 10 else 300.0 for n in count())
            killed(root, out, step, pauses, "--preset", "burberry", "--source", sample, *share)
    done = run(root, "--preset", "burberry", "--source", sample, "--output", out, "--join")
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(shards)


def test_photographs_keep_the_catalogues_own_split(root: Path, material: Path, tmp_path: Path) -> None:
    lines = (material / "clothing" / "rows.csv").read_text().splitlines()
    chosen = [lines[0], *lines[1::30]]
    (tmp_path / "rows.csv").write_text("\n".join(chosen) + "\n")
    done = run(
        root, "--preset", "clothing", "--source", tmp_path / "rows.csv", "--output", tmp_path / "out",
        "--image-root", material / "clothing", "--shard-samples", 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {line.split(",")[0]: line.split(",")[2:] for line in chosen[1:]}
    found = {
        one.key: [one.messages[1]["content"], split]
        for split in ("train", "validation")
        for one, _ in iter_samples(tmp_path / "out", split)
    }
    assert found == expected
    assert len(Manifest.load(tmp_path / "out").shards["train"]) == 3


def test_an_error_is_a_line_without_a_traceback(root: Path, tmp_path: Path) -> None:
    done = run(root, "--preset", "burberry", "--source", tmp_path / "none.csv", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_builder_needs_no_training_stack(root: Path) -> None:
    asked = (
        "import sys, data.build, data.verify, data.show; "
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'train') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
