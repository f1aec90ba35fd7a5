"""Benchmarks one after the other, each in a process of its own, and the record of what they found."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from data.schema import UserError
from data.whole import write_whole
from tests.benchmarks.bench.machine import ROOT, cpu_times, others, share
from tests.benchmarks.figures import Figure

SCHEMA = 1
TAIL_LINES = 20
BUSY, STOLEN = 0.1, 0.02


class RecordError(UserError):
    """A file that is not a record of benchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark that is known."""

    name: str
    """Of the module in tests.benchmarks."""
    says: str
    """What it measures, for a person."""
    quick: tuple[str, ...] = ()
    """Its arguments for about a minute; without any it takes its full size."""
    always: tuple[str, ...] = ()
    """Its arguments at either size."""
    material: bool = False
    """Whether it takes --material."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a benchmark."""

    name: str
    state: str
    """done, skipped or failed"""
    reason: str | None
    """Why it is not done."""
    seconds: float
    arguments: tuple[str, ...]
    figures: tuple[Figure, ...]
    load_before: float
    """The machine's load average of a minute, when it began."""
    others: float
    """The share of the processors that others used right before and after it, the larger one."""
    steal: float
    """The share of the processors' time during it that the machine below took back."""

    @property
    def busy(self) -> bool:
        """Whether others had so much of the machine that absolute figures say little."""
        return self.others >= BUSY or self.steal >= STOLEN

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `Record.save` wrote of it."""
        lists = {
            "arguments": tuple(values["arguments"]),
            "figures": tuple(map(Figure.from_json, values["figures"])),
        }
        return cls(**dict(values) | lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that one run of the benchmarks found, and on what."""

    begun: str
    """ISO 8601, UTC"""
    seconds: float
    size: str
    """quick or full"""
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: dict[str, Any] | None
    benchmarks: tuple[Outcome, ...]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        outcomes = []
        for one in self.benchmarks:
            fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
            outcomes.append(fields | {"figures": [figure.to_json() for figure in one.figures]})
        text = json.dumps({"schema": SCHEMA} | values | {"benchmarks": outcomes}, indent=1, ensure_ascii=False)
        write_whole(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises RecordError for anything else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{path} cannot be read as a record of benchmarks: {error}") from error
        found = values.pop("schema", None) if isinstance(values, dict) else None
        if found != SCHEMA:
            raise RecordError(f"{path} has schema {found}, this program writes and compares {SCHEMA}")
        try:
            return cls(**values | {"benchmarks": tuple(map(Outcome.from_json, values["benchmarks"]))})
        except (KeyError, TypeError) as error:
            raise RecordError(f"{path} is not a whole record of benchmarks: {error!r}") from error


def run_alone(
    name: str,
    arguments: Sequence[str],
    *,
    timeout_s: float,
    package: str = "tests.benchmarks",
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run one benchmark in a process of its own, to its end or at most `timeout_s`.

    Returns what became of it; a benchmark that fails is one of the outcomes. What it prints is shown where it failed.
    """
    load, before_it = os.getloadavg()[0], others()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", errors="replace") as log:
        into = Path(folder) / "found.json"
        command = [sys.executable, "-m", "tests.benchmarks.bench.alone", f"{package}.{name}", str(into), *arguments]
        ticks, begun = cpu_times(), time.perf_counter()
        running = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code: int | None = running.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_all(running)
        seconds = time.perf_counter() - begun
        steal = share(ticks, cpu_times(), "steal")
        found = json.loads(into.read_text()) if into.is_file() else {}
        log.seek(0)
        said = log.read().splitlines()
    if code == 0 and found:
        state, reason = ("skipped", found["lacking"]) if "lacking" in found else ("done", None)
    else:
        state, reason = "failed", _why(code, timeout_s, said)
        print("\n".join(f"    {line}" for line in said[-TAIL_LINES:]), file=sys.stderr)
    return Outcome(
        name=name,
        state=state,
        reason=reason,
        seconds=round(seconds, 1),
        arguments=tuple(arguments),
        figures=tuple(map(Figure.from_json, found.get("figures", ()))) if state == "done" else (),
        load_before=round(load, 2),
        others=round(max(before_it, others()), 3),
        steal=round(steal, 4),
    )


def _why(code: int | None, timeout_s: float, said: Sequence[str]) -> str:
    last = next((line.strip() for line in reversed(said) if line.strip()), "it printed nothing")
    if code is None:
        return f"not done after {timeout_s:,.0f} s, ended; it said last: {last}"
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {last}"


def _end_all(running: "subprocess.Popen[bytes]") -> None:
    """End a benchmark, where it has not ended, with all processes of its session's group."""
    with suppress(ProcessLookupError):  # it and all it started have ended
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
