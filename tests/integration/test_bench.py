"""Benchmarks run one after the other: what fails, cannot run here or does not end, and what is written at the end."""

import argparse
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.bench import machine, runs
from tests.benchmarks.bench.__main__ import bench, parse
from tests.benchmarks.bench.runs import Benchmark, Record, run_alone
from tests.benchmarks.figures import of_rounds

STUBS = {
    "well": """
from argparse import ArgumentParser
from tests.benchmarks.figures import of_rounds
def parser():
    arguments = ArgumentParser()
    arguments.add_argument("--rate", type=float, default=10.0)
    return arguments
def measure(options):
    return [of_rounds("rate", [options.rate] * 3, "things/s", baseline=("theirs", [5.0, 4.0, 2.0]))]
""",
    "broken": """
from argparse import ArgumentParser as parser
def measure(options):
    raise ValueError("the thing is broken")
""",
    "lacking": """
from argparse import ArgumentParser as parser
from tests.benchmarks.figures import Unavailable
def measure(options):
    raise Unavailable("there is no GPU here")
""",
    "endless": """
from argparse import ArgumentParser as parser
import subprocess, sys, time
def measure(options):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("still at it", flush=True)
    time.sleep(60)
""",
}


def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks of this test's own, in a package `stubs` that every process finds."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name, text in STUBS.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setattr(machine, "LOOK_S", 0.01)


def options(tmp_path: Path) -> argparse.Namespace:
    """The command line's, with files going to the test's folder."""
    return parse(["--output", str(tmp_path)])


def test_what_fails_or_cannot_run_here_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed(tmp_path, monkeypatch)
    known = [Benchmark(name=name, says=name) for name in ("broken", "lacking")]
    known.append(Benchmark(name="well", says="rate", quick=("--rate", "8")))
    assert bench(options(tmp_path), known, package="stubs") == 1
    found = {one.name: one for one in Record.load(tmp_path / "benchmarks.json").benchmarks}
    assert (found["broken"].state, found["broken"].reason) == ("failed", "exit code 1: ValueError: the thing is broken")
    assert (found["lacking"].state, found["lacking"].reason) == ("skipped", "there is no GPU here")
    assert (found["well"].state, found["well"].figures[0].value) == ("done", 8.0)
    assert "1 done, 1 skipped, 1 failed" in capsys.readouterr().out
    assert "skipped: there is no GPU here" in (tmp_path / "benchmarks.md").read_text()
    assert ET.parse(tmp_path / "benchmarks.svg").getroot().findall("{http://www.w3.org/2000/svg}rect")


def test_the_record_that_lay_there_is_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed(tmp_path, monkeypatch)
    known = [Benchmark(name="well", says="rate")]
    assert bench(options(tmp_path), known, package="stubs") == 0
    path = tmp_path / "benchmarks.json"
    first = Record.load(path)
    (one,) = first.benchmarks
    faster = of_rounds("rate", [20.0, 21.0], "things/s")
    replace(first, benchmarks=(replace(one, figures=(faster,)),)).save(path)
    capsys.readouterr()
    assert bench(options(tmp_path), known, package="stubs") == 0
    said = capsys.readouterr().out
    assert "20.5 → 10 things/s" in said
    assert "1 of 1 got worse" in said
    assert Record.load(path).benchmarks[0].figures[0].value == 10.0


def test_one_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubbed(tmp_path, monkeypatch)
    groups = []
    ended = runs._end_all
    monkeypatch.setattr(runs, "_end_all", lambda running: (groups.append(running.pid), ended(running)))
    found = run_alone("endless", (), timeout_s=1.5, package="stubs")
    assert found.state == "failed"
    assert found.reason is not None
    assert found.reason.startswith("not done after 2 s, ended")
    # One that was ended may be a zombie until its new parent looks.
    alive = [one for one in psutil.process_iter(["status"]) if group_of(one) == groups[0]]
    assert [one for one in alive if one.info["status"] != psutil.STATUS_ZOMBIE] == []


def group_of(process: psutil.Process) -> int | None:
    """A process's group; None where it has ended."""
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None
