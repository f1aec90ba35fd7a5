"""Many faults in one run of two ranks: it finishes, and its records name every one."""

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import xxhash

from data.conversation import Conversation
from data.index import Index, write_index
from data.manifest import Manifest
from data.shards import iter_samples
from tests.distributed.conftest import Bench
from tests.distributed.test_resume import ranks_of
from tests.factories.served import Served, served
from tests.factories.small_shards import small_shards
from train.pipeline.remote import mirror

PER_SHARD = 100  # samples in each of three shards; a fourth goes missing before it is read
DAMAGED, KILLED, CUT, SLOW = 140, 36, 20, 4  # samples, workers, files of the cache, ranks: 200 together


def spoil(folder: Path, number_of: int, rng: random.Random) -> set[str]:
    """Damage samples in every way: a byte of a picture or a header, a header's name, JSON and pictures written wrong.

    Returns their keys.
    """
    index = Index.open(folder / "index.arrow")
    entries = [index.entry(number) for number in range(len(index))]
    last = max(entry.shard for entry in entries)
    chosen = rng.sample([n for n, entry in enumerate(entries) if entry.shard != last and entry.image_sizes], number_of)
    for place, number in enumerate(chosen):
        entry = entries[number]
        member = entry.members[0 if place % 2 else -1]
        at = (entry.offset + 3, entry.offset + entry.length - 1, member.offset)[place % 3]
        with (folder / f"shard-{entry.shard:06d}.tar").open("r+b") as stream:
            stream.seek(at)
            stream.write(b"\xff" * (1 if place % 3 < 2 else min(member.size, 40)))
            stream.seek(entry.offset)
            content = stream.read(entry.length)
        if place % 3 == 2:  # as if the builder had written it so
            entries[number] = replace(entry, xxh3=xxhash.xxh3_64_intdigest(content))
    write_index(folder / "index.arrow", entries)
    return {entries[number].key for number in chosen}


def count_tokens(shards: Path, tokenizer: Path) -> None:
    """Put the tokens of each sample into the index, as a build with the model's tokenizer does."""
    manifest = Manifest.load(shards)
    conversation = Conversation(tokenizer.read_text("utf-8"), manifest.chat_template["template"])
    index = Index.open(shards / "train" / "index.arrow")
    entries = []
    for number, (sample, pictures) in enumerate(iter_samples(shards, "train")):
        entry = index.entry(number)
        text, labels = conversation.count(sample.messages, len(pictures))
        entries.append(replace(entry, text_tokens=text, label_tokens=labels))
    write_index(shards / "train" / "index.arrow", entries)
    replace(manifest, tokenizer_hash=hashlib.sha256(tokenizer.read_bytes()).hexdigest()).save(shards)


def workers_of(pid: int) -> dict[int, psutil.Process]:
    """The loader's worker processes below a process."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "train.pipeline.worker" in " ".join(process.cmdline()):
                found[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return found


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines, none where it is not there yet."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "origin").mkdir()
    with served(tmp_path / "origin") as site:
        yield site


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_run_outlives_its_faults_and_names_every_one(bench: Bench, site: Served, tmp_path: Path) -> None:
    rng = random.Random(0)
    small_shards(site.folder, shards=4, per_shard=PER_SHARD)
    count_tokens(site.folder, bench.folder / "model" / "tokenizer.json")
    folder = site.folder / "train"
    keys = spoil(folder, DAMAGED, rng)
    (folder / "shard-000003.tar").unlink()
    keys |= {f"train-3-{place}" for place in range(PER_SHARD)}
    cache, run = tmp_path / "cache", bench.runs / "faults"
    settings = (
        f"data.shards={site.url}",
        f"data.shard_cache={cache}",
        "data.cache_gb=0.1",
        "data.max_bad=1000",
        "evaluate.every_steps=0",
        "checkpoint.every_steps=0",
    )
    # It goes on until every fault was told of, however quick the machine; then it is asked to leave and finishes.
    process = bench.start(2, run.name, *settings, "stop.steps=100000")
    bench.await_step(run.name, 2, process)
    faults = ["killed"] * KILLED + ["cut"] * CUT + ["slow"] * SLOW
    rng.shuffle(faults)
    killed: list[int] = []
    cut: list[str] = []
    slow: list[int] = []
    for fault in faults:
        before = len(records(run / "data_events.jsonl"))
        if fault == "killed":
            victim = rng.choice(list(workers_of(process.pid).values()))
            killed.append(victim.pid)
            victim.kill()
        elif fault == "slow":
            victim = rng.choice(list(workers_of(process.pid).values()))
            slow.append(int(psutil.Process(victim.ppid()).environ()["RANK"]))
            victim.suspend()
            time.sleep(4)
            victim.resume()
            continue
        else:
            target = rng.choice(await_files(cache, 3))
            cut.append(str(target))
            site.refusing = 2
            os.truncate(target, 100)
        end = time.monotonic() + 180
        while not named(records(run / "data_events.jsonl")[before:], fault):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, f"{fault} was not told of"
            time.sleep(0.05)
    while bench.lines(run.name)[-1]["epoch"] < 1:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=600)[0]
    assert bench.status(run.name)["state"] == "preempted", output
    step = bench.status(run.name)["step"]
    ended = bench.train(2, run.name, *settings, f"stop.steps={step + 3}")
    assert ended.returncode == 0, ended.stdout
    assert bench.status(run.name)["state"] == "finished"
    left_out = [(record["step"], record["key"]) for record in records(run / "bad_samples.jsonl")]
    assert {key for _, key in left_out} == keys
    assert len(set(left_out)) == len(left_out)
    assert all(record["shard"].startswith("shard-") for record in records(run / "bad_samples.jsonl"))
    events = records(run / "data_events.jsonl")
    for pid in killed:
        assert any(event["event"] == "worker" and f"process {pid})" in event["where"] for event in events)
    told = [event["where"] for event in events if event["event"] == "cache"]
    assert set(cut) <= set(told)
    waited = [line["time"] for line in bench.lines(run.name) if line["time"]["data_wait_s"] > 1]
    assert set(slow) <= {one["data_wait_rank"] for one in waited}
    assert mirror(site.url, cache, 1.0).is_dir()


def named(events: list[dict[str, Any]], fault: str) -> bool:
    """Whether a fault was told of. What was cut has to be read from an origin that is away just then."""
    if fault == "killed":
        return any(event["event"] == "worker" for event in events)
    away = any(event["event"] == "remote" and "503" in event["what"] for event in events)
    return away and any(event["event"] == "cache" for event in events)


def await_files(cache: Path, count: int) -> list[Path]:
    """The shards in the cache, once so many are."""
    end = time.monotonic() + 60
    while len(found := sorted(cache.glob("*.tar"))) < count:
        assert time.monotonic() < end
        time.sleep(0.05)
    return found
