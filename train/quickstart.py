"""The program's main job from start to end on a small scale: what `make quickstart` runs.

    python -m train.quickstart [--folder runs]

Every stage is a command that a person could type; its output goes to a log, its one line to the terminal.
A stage that ended well by the same command, and whose files are still whole, is not run again.
"""

import argparse
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data.shards import iter_samples
from train.summary import print_summary

ROWS = 3040
CPU_RANKS = 2
STAGES = 7
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command of the way."""

    name: str
    """Names its log file."""
    says: str
    """What it does, for a person."""
    command: tuple[str, ...]
    """As typed in the root of the checkout."""
    outputs: tuple[Path, ...]
    """Files that are there, and stay as they are, when it ended well."""
    metrics: Path | None = None
    """A metrics.jsonl whose newest line shows how far it is."""


class StageFailed(Exception):
    """A stage ended with a non-zero exit code."""


def stages(folder: Path) -> Iterator[Stage]:
    """The commands from a catalogue to an answer, with all they write below `folder`; each may read the ones before."""
    sources, model, run = folder / "quickstart-data", folder / "quickstart-model", folder / "quickstart"
    catalogue, shards, python = sources / "catalogue", sources / "shards", ("python", "-m")
    yield Stage(
        name="catalogue",
        says=f"draw the sample catalogue ({ROWS:,} products)",
        command=(*python, "data.sample", str(catalogue), "--rows", str(ROWS), "--seed", "0"),
        outputs=(catalogue / "catalogue.csv",),
    )
    yield Stage(
        name="shards",
        says="check every picture, split by product, write shards",
        command=(
            *(*python, "data.build", "--preset", "burberry"),
            *("--source", f"{catalogue}/catalogue.csv", "--output", str(shards)),
        ),
        outputs=(shards / "manifest.json",),
    )
    yield Stage(
        name="model",
        says="make a small Phi-3-vision: random weights, a tokenizer of its own",
        command=(*python, "train.model.tiny", str(model), "--shards", str(shards), "--seed", "0"),
        outputs=(model / "model.safetensors", model / "tokenizer.json", model / "config.json"),
    )
    yield Stage(
        name="train",
        says="fine-tune all of it with DeepSpeed ZeRO-3",
        command=(
            *("deepspeed", "train/main.py", "--config", "train/configs/quickstart.yaml", "--run", run.name),
            *("--set", f"run.folder={folder}", "--set", f"model.path={model}", "--set", f"data.shards={shards}"),
        ),
        outputs=(run / "config.yaml", run / "metrics.jsonl"),
        metrics=run / "metrics.jsonl",
    )
    yield Stage(
        name="evaluate",
        says="answer for the held-out products, score, and again with other pictures, white ones, none",
        command=(*python, "train.evaluate", str(run)),
        outputs=(run / "evaluation/scores.json", run / "report.html"),
    )
    yield Stage(
        name="export",
        says="export a folder that transformers' from_pretrained reads",
        command=(*python, "train.export", str(run), f"{run}/export", "--overwrite"),
        outputs=(run / "export/model.safetensors", run / "export/config.json"),
    )
    held_out = next(iter_samples(shards, "test"))[0]
    yield Stage(
        name="answer",
        says="ask the exported model about a picture it has never seen",
        command=(*python, "train.predict", f"{run}/export", f"{catalogue}/{held_out.source['columns']['imageurl']}"),
        outputs=(run / "logs/answer.log",),
    )


def environment() -> dict[str, str]:
    """What the stages see: this interpreter's commands first; the CPU with two ranks unless GPU=1."""
    values = dict(os.environ)
    values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{values.get('PATH', '')}"
    values["PYTHONUNBUFFERED"] = "1"
    if values.get("GPU", "") in ("", "0"):
        values |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(CPU_RANKS)}
    return values


def fingerprints(stage: Stage) -> dict[str, str] | None:
    """SHA-256 of the stage's output files by path, or None where one is missing."""
    if not all(path.is_file() for path in stage.outputs):
        return None
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in stage.outputs}


def newest_step(metrics: Path) -> tuple[int, int]:
    """(step, last step) of the newest training line in metrics.jsonl; (0, 1) before the first."""
    if not metrics.is_file():
        return 0, 1
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        if b'"train"' in line and line.startswith(b"{"):
            record = json.loads(line)
            return record["step"], record["steps"]
    return 0, 1


def on_free_port(command: tuple[str, ...]) -> tuple[str, ...]:
    """A launcher's command with a port of its own, so that another training on this machine does not matter."""
    if command[0] != "deepspeed":
        return command
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return (command[0], "--master_port", str(probe.getsockname()[1]), *command[1:])


def run_stage(stage: Stage, log: Path, progress: Progress) -> None:
    """Run one command, its output into `log`, a bar on a terminal; raises StageFailed with the log's end."""
    task = progress.add_task(stage.says, total=None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            on_free_port(stage.command),
            cwd=CHECKOUT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while process.poll() is None:
                if stage.metrics is not None:
                    step, steps = newest_step(stage.metrics)
                    progress.update(task, completed=step, total=steps)
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    progress.remove_task(task)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise StageFailed(
            f"{shlex.join(stage.command)}\nended with exit code {process.returncode}; {log} ends:\n{tail}"
        )


def run_all(folder: Path, console: Console) -> None:
    """Run every stage that is not whole, and all behind the first of them."""
    logs = folder / "quickstart/logs"
    logs.mkdir(parents=True, exist_ok=True)
    record = folder / "quickstart/stages.json"
    done = json.loads(record.read_text()) if record.is_file() else {}
    fresh = True
    columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for number, stage in enumerate(stages(folder), 1):
            title = f"[{number}/{STAGES}] {stage.name:<9}  {stage.says}"
            found = fingerprints(stage)
            known = done.get(stage.name, {})
            if fresh and found and known == {"command": list(stage.command), "files": found}:
                console.print(f"{title}: whole, kept", markup=False, highlight=False)
                continue
            fresh = False
            begun = time.monotonic()
            run_stage(stage, logs / f"{stage.name}.log", progress)
            files = fingerprints(stage)
            if files is None:
                raise StageFailed(f"stage {stage.name} ended well but left out one of {[*map(str, stage.outputs)]}")
            done[stage.name] = {"command": list(stage.command), "files": files}
            record.with_suffix(".tmp").write_text(json.dumps(done, indent=1))
            record.with_suffix(".tmp").replace(record)
            console.print(f"{title}: {time.monotonic() - begun:.0f} s", markup=False, highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Run the way and print what came out of it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where everything is written (default: runs)")
    options = parser.parse_args(arguments)
    os.chdir(CHECKOUT)
    # A log file has no width of its own; the closing table needs this much.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 110)
    begun = time.monotonic()
    try:
        run_all(options.folder, console)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; `make quickstart` goes on from here", file=sys.stderr)
        return 130
    print_summary(options.folder, console, time.monotonic() - begun)
    return 0


if __name__ == "__main__":
    sys.exit(main())
