"""The rank's stream of batches, from a thread and from worker processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.plans import SMALL
from tests.factories.small_shards import SmallShards, damage, small_shards
from train.pipeline import makers
from train.pipeline.batch import Batch
from train.pipeline.encode import Job, Made
from train.pipeline.loader import Loader
from train.pipeline.makers import Interrupted, LoaderError, WorkerFailed
from train.pipeline.opening import open_plan
from train.pipeline.plan import Plan
from train.pipeline.storage import Storage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    return small_shards(tmp_path_factory.mktemp("shards"))


def opened(built: SmallShards) -> Plan:
    return open_plan(built.folder, "train", SMALL, tokenizer_file=built.tokenizer, cache=None)


def loader_of(built: SmallShards, **settings: Any) -> Loader:
    plan = opened(built)
    values = {"rank": 0, "world": 1, "start_step": 0, "end_step": plan.steps_until(2), "workers": 0} | settings
    return Loader(plan, built.tokenizer, **values)


def equal(first: Batch, second: Batch) -> bool:
    same = all(np.array_equal(array, getattr(second, name)) for name, array in first.arrays().items())
    return same and first.plain() == second.plain()


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_stream_as_a_thread(built: SmallShards, workers: int):
    with loader_of(built) as expected, loader_of(built, workers=workers) as stream:
        for (step, batches), (other_step, others) in zip(expected, stream, strict=True):
            assert step == other_step
            assert all(equal(a, b) for a, b in zip(batches, others, strict=True))
            others[0].labels[:] = -100  # the arrays are the receiver's own


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_together_get_the_global_batches_of_one(built: SmallShards, world: int):
    plan = opened(built)
    alone = {step: {b.number: b for b in batches} for step, batches in loader_of(built)}
    together: dict[int, dict[int, Batch]] = {step: {} for step in alone}
    counts = []
    for rank in range(world):
        micro_steps = []
        for step, batches in loader_of(built, rank=rank, world=world):
            micro_steps.append([(b.crop_chunks, b.label_chunks) for b in batches])
            together[step] |= {b.number: b for b in batches if b.keys}
        counts.append(micro_steps)
    assert all(micro_steps == counts[0] for micro_steps in counts)
    for step, batches in alone.items():
        assert batches.keys() == together[step].keys()
        assert len(batches) == len(plan.batch(step).packs)
        for number, batch in batches.items():
            assert batch.keys == together[step][number].keys
            assert np.array_equal(batch.input_ids, together[step][number].input_ids)


def test_a_stream_taken_up_at_a_step_goes_on_as_if_never_left(built: SmallShards):
    whole = list(loader_of(built))
    for start in (1, 4, len(whole) - 1):
        rest = list(loader_of(built, start_step=start))
        assert [step for step, _ in rest] == list(range(start, len(whole)))
        for (_, batches), (_, others) in zip(whole[start:], rest, strict=True):
            assert all(equal(a, b) for a, b in zip(batches, others, strict=True))


@pytest.mark.parametrize(("ahead_bytes", "made"), [(2**30, 10), (1, 6)])
def test_what_is_made_ahead_is_bounded(built: SmallShards, ahead_bytes: int, made: int):
    """A step is 5 packs; 5 more are made meanwhile, or one where one fills the room."""
    with loader_of(built, ahead_bytes=ahead_bytes) as loader:
        submit, jobs = loader._makers[0].submit, []

        def counted(job: Job) -> Callable[[], Made]:
            jobs.append(job)
            return submit(job)

        loader._makers[0].submit = counted  # type: ignore[method-assign]
        next(loader)
        assert len(jobs) == made


def test_damage_is_reported_alike_by_any_number_of_ranks(tmp_path: Path):
    built = small_shards(tmp_path)
    plan = opened(built)
    for number in (3, 30, 31):
        entry = plan.corpus.entry(number)
        damage(built.folder, "train", entry.shard, entry.offset + entry.length - 1)
    reports = []
    for world in (1, 3):
        found = set()
        for rank in range(world):
            for step, batches in loader_of(built, rank=rank, world=world, end_step=plan.steps_in(0)):
                found |= {(step, batch.number, bad) for batch in batches for bad in batch.bad}
        reports.append(found)
    assert reports[0] == reports[1]
    assert {bad.key for _, _, bad in reports[0]} == {"train-0-3", "train-1-10", "train-1-11"}


def test_a_killed_worker_is_replaced_and_the_stream_is_the_same(built: SmallShards):
    with loader_of(built) as expected, loader_of(built, workers=2) as stream:
        events = []
        for (step, batches), (_, others) in zip(expected, stream, strict=True):
            assert all(equal(a, b) for a, b in zip(batches, others, strict=True))
            events += stream.latest.events
            if step in (0, 2):
                worker = stream._makers[step // 2]._process  # type: ignore[attr-defined]
                worker.kill()
                worker.wait()
    assert [event.event for event in events] == ["worker", "worker"]
    assert "was ended by SIGKILL" in events[0].what
    assert f"process {worker.pid}" in events[1].where


def test_a_pack_that_kills_its_workers_ends_the_stream_and_is_named(
    built: SmallShards, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(makers, "DEATHS_AT_ONE_PACK", 1)
    loader = loader_of(built, workers=2)
    next(loader)
    worker = loader._makers[1]._process  # type: ignore[attr-defined]
    worker.kill()
    worker.wait()
    with pytest.raises(LoaderError, match=rf"worker 1 .*process {worker.pid}\) was ended by SIGKILL.*pack \d"):
        list(loader)
    assert not loader._makers


def test_a_worker_that_says_nothing_ends_the_stream(built: SmallShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(makers, "SILENCE_BEYOND_PATIENCE_S", 0.5)
    monkeypatch.setattr(makers, "LOOK_EVERY_S", 0.1)
    with loader_of(built, workers=1, storage=Storage(patience_s=0.0)) as loader:
        worker = loader._makers[0]._process  # type: ignore[attr-defined]
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(LoaderError, match=r"has not made pack \d of step 0 in \d s"):
            next(loader)
        worker.send_signal(signal.SIGCONT)


def test_a_rank_asked_to_leave_waits_for_no_pack(built: SmallShards, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(makers, "LOOK_EVERY_S", 0.1)
    with loader_of(built, workers=1, asked=lambda: True) as loader:
        worker = loader._makers[0]._process  # type: ignore[attr-defined]
        worker.send_signal(signal.SIGSTOP)
        with pytest.raises(Interrupted):
            next(loader)
        assert not loader._makers, "a stopped worker is ended too"


def test_workers_leave_a_jobs_signals_to_their_rank(built: SmallShards):
    with loader_of(built, workers=1) as loader:
        process = loader._makers[0]._process  # type: ignore[attr-defined]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            process.send_signal(number)
        assert len(list(loader)) == opened(built).steps_until(2)


def test_samples_of_a_shard_that_goes_missing_are_left_out_by_name(tmp_path: Path):
    built = small_shards(tmp_path)
    with loader_of(built, workers=1, end_step=opened(built).steps_in(0)) as loader:
        (built.folder / "train" / "shard-000001.tar").unlink()
        bad = [one for _, batches in loader for batch in batches for one in batch.bad]
    assert {one.key for one in bad} == {f"train-1-{place}" for place in range(20)}
    assert {one.reason for one in bad} == {"the shard is gone"}


def test_a_bug_in_a_worker_is_raised_with_its_traceback(built: SmallShards):
    with loader_of(built, workers=1) as loader:
        job = Job(step=0, number=0, samples=(10**6,), tokens=(1,), num_crops=(4,), crop_chunks=1, label_chunks=1)
        result = loader._makers[0].submit(job)
        with pytest.raises(WorkerFailed, match=r"pack 0 of step 0:(.|\n)*IndexError"):
            result()


def test_workers_end_with_a_rank_that_is_killed(built: SmallShards, root: Path):
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from tests.factories.small_shards import SmallShards\n"
        "from tests.unit.test_loader import loader_of\n"
        f"folder, tokenizer = Path({str(built.folder)!r}), Path({str(built.tokenizer)!r})\n"
        "built = SmallShards(folder=folder, tokenizer=tokenizer, samples={})\n"
        "loader = loader_of(built, workers=2)\nnext(loader)\n"
        "print(*(maker._process.pid for maker in loader._makers), flush=True)\n"
        "sys.stdin.read()\n"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout
    workers = [int(pid) for pid in rank.stdout.readline().split()]
    rank.kill()
    rank.wait()
    deadline = time.monotonic() + 30
    while alive := [pid for pid in workers if running(pid)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)
    assert len(workers) == 2


def running(pid: int) -> bool:
    """Whether a process is there and not just waiting for its parent to notice its end."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_closing_early_leaves_no_process_and_no_descriptor(built: SmallShards):
    before = len(os.listdir("/proc/self/fd"))
    loader = loader_of(built, workers=2)
    processes = [maker._process for maker in loader._makers]  # type: ignore[attr-defined]
    _, batches = next(loader)
    loader.close()
    loader.close()
    assert list(loader) == []
    assert all(process.poll() is not None for process in processes)
    assert batches[0].input_ids[0] == 1
    del loader, batches
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_seconds_waited_for_a_step_are_known(built: SmallShards):
    with loader_of(built) as loader:
        assert loader.latest.waited_s == 0
        next(loader)
        assert loader.latest.waited_s > 0
