"""Trainings with a fault put into them, in place of train/main.py: `FAULT='{…}' python -m tests.factories.faulty …`.

With `--cases FILE` one process does several, one after the other, and writes what became of each beside the file.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from train import keeping, main, saving
from train.answering import Answerer
from train.engine import Engine
from train.loop import Training
from train.runs import RunFolder

Usage = namedtuple("Usage", "total used free")
PLACES = {
    "train_pack": Engine.train_pack,
    "measure_pack": Engine.measure_pack,
    "next_batches": Training.next_batches,
    "generate": Answerer._generate,
    "write_slices": saving.write_slices,
    "is_fp16_supported": get_accelerator().is_fp16_supported,
}
NAMES = {signal.SIGTERM.name: signal.SIGTERM, signal.SIGUSR1.name: signal.SIGUSR1}


def put(fault: dict[str, Any]) -> None:
    """Put a fault in, all earlier ones taken out.

    fault: `kind` (below), `steps` (the optimizer steps, from 1, in which it happens; none: always), `rank`; `half`:
    whether DeepSpeed takes the CPU for one that computes fp16, which torch does on any (not given: as DeepSpeed finds).
    """
    half = fault.get("half")
    get_accelerator().is_fp16_supported = PLACES["is_fp16_supported"] if half is None else lambda: half
    Engine.train_pack = PLACES["train_pack"]  # type: ignore[method-assign,assignment]
    Engine.measure_pack = PLACES["measure_pack"]  # type: ignore[method-assign,assignment]
    Answerer._generate = PLACES["generate"]  # type: ignore[method-assign,assignment]
    Training.next_batches = PLACES["next_batches"]  # type: ignore[method-assign,assignment]
    saving.write_slices = PLACES["write_slices"]  # type: ignore[assignment]
    keeping.shutil.disk_usage = USAGE  # type: ignore[attr-defined]
    kind = fault.get("kind")
    steps = fault.get("steps")
    here = int(os.environ.get("RANK", "0")) == fault.get("rank", 0)

    def hits(step: int) -> bool:
        return here and (steps is None or step in steps)

    if kind in ("loss", "gradient", "memory", "sleep", "stop"):
        Engine.train_pack = in_train_pack(kind, hits)  # type: ignore[method-assign,assignment]
    elif kind == "no room":
        keeping.shutil.disk_usage = no_room(fault["saves"])  # type: ignore[attr-defined,assignment]
    elif kind in ("full", "bug", "signal in save") or (kind == "sleep in save" and here):
        saving.write_slices = in_writer(kind, fault)  # type: ignore[assignment]
    elif kind == "signal in evaluation" and here:
        Engine.measure_pack = in_evaluation(fault)  # type: ignore[method-assign,assignment]
    elif kind == "nan answers":
        Answerer._generate = nan_answers  # type: ignore[method-assign]
    elif kind == "sleep in data":
        Training.next_batches = in_data(hits)  # type: ignore[method-assign,assignment]


USAGE = shutil.disk_usage


def in_train_pack(kind: str, hits: Any) -> Any:
    """Forward and backward of a pack that goes wrong."""

    def train_pack(self: Engine, batch: Any, step: int, scale: float, mark: Any) -> torch.Tensor:
        plain = PLACES["train_pack"]
        if not hits(step + 1) or batch.number > 1:
            return plain(self, batch, step, scale, mark)  # type: ignore[no-any-return]
        if kind == "memory":
            mark("forward")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        if kind == "sleep":
            mark("forward")
            time.sleep(3600)
        if kind == "stop":
            mark("forward")
            time.sleep(2.0)  # steps are short here: long enough for a beat to tell of this phase
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "gradient":
            return plain(self, batch, step, float("nan"), mark)  # type: ignore[no-any-return]
        # An infinite loss whose gradient is finite.
        head = next(module for name, module in self.deepspeed.module.named_modules() if name.endswith("lm_head"))
        hook = head.register_forward_hook(lambda module, inputs, output: output + float("inf"))
        try:
            return plain(self, batch, step, scale, mark)  # type: ignore[no-any-return]
        finally:
            hook.remove()

    return train_pack


def in_writer(kind: str, fault: dict[str, Any]) -> Any:
    """A writer of slices that fails or hangs at the saves numbered `saves`, from 1, or sends this process a signal."""
    calls = 0

    def write_slices(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in fault["saves"]:
            if kind == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if kind == "bug":
                raise RuntimeError("a bug in the writer")
            if kind == "sleep in save":
                time.sleep(3600)
            os.kill(os.getpid(), NAMES[fault["signal"]])
            time.sleep(0.5)
        return PLACES["write_slices"](*arguments)

    return write_slices


def no_room(saves: list[int]) -> Any:
    """A disk that is full at the saves numbered `saves`, from 1."""
    calls = 0

    def disk_usage(path: Any) -> Any:
        nonlocal calls
        calls += 1
        return Usage(10**9, 10**9, 0) if calls in saves else USAGE(path)

    return disk_usage


def in_evaluation(fault: dict[str, Any]) -> Any:
    """A measurement in which a signal comes, at the first pack that is not the probe."""
    sent = False

    def measure_pack(self: Engine, batch: Any) -> Any:
        nonlocal sent
        if not sent and batch.keys != ("probe",):
            sent = True
            os.kill(os.getpid(), NAMES[fault["signal"]])
        return PLACES["measure_pack"](self, batch)

    return measure_pack


def nan_answers(self: Answerer, prompts: Any) -> Any:
    """Generation by a model that computes NaN."""
    tokens, logprobs = PLACES["generate"](self, prompts)
    return tokens, logprobs * float("nan")


def in_data(hits: Any) -> Any:
    """A loader that hangs without a word."""

    def next_batches(self: Training) -> Any:
        if hits(self.done + 1):
            time.sleep(3600)
        return PLACES["next_batches"](self)

    return next_batches


class Ended(BaseException):
    """In place of the process's end."""


def all_cases(file: Path) -> None:
    """Every case of a file, in this process: [{"name", "fault", "arguments"}]; writes code and output of each."""
    worlds: list[Any] = []
    bring_together = main.bring_together

    def once(*arguments: Any) -> Any:
        if not worlds:
            worlds.append(bring_together(*arguments))
        return worlds[0]

    def end(code: int) -> None:
        raise Ended(code)

    folders: list[RunFolder] = []

    def folder(path: Path) -> RunFolder:
        folders.append(RunFolder(path))
        return folders[-1]

    main.RunFolder = folder  # type: ignore[assignment,misc]
    main.bring_together, main.part, main.end_at_once = once, lambda: None, end  # type: ignore[assignment]
    found = {}
    for case in json.loads(file.read_text()):
        put(case["fault"])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = main.main(case["arguments"])
            except Ended as ended:
                code = ended.args[0]
        for one in folders:
            if one.lock is not None:
                one.lock.close()  # as the end of a process does
        found[case["name"]] = {"code": code, "output": said.getvalue()}
    file.with_name("outcomes.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1] == "--cases":
        all_cases(Path(sys.argv[2]))
        os._exit(0)
    put(json.loads(os.environ["FAULT"]))
    sys.exit(main.main(sys.argv[1:]))
