"""Which checkpoints a run has, which of them are whole, and which are kept: `python -m train.checkpoint … RUN`."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.checkpoint import CheckpointError, Manifest, file_problem, problem

DAMAGED = 1
USER_ERROR = 2
# Beside a checkpoint's own bytes: manifest, metrics, logs.
SPARE_BYTES = 32 * 2**20


def found(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first; whole or not. What a person renamed is none."""
    folders = (Path(run) / "checkpoints").glob("step-[0-9]*")
    return sorted((one for one in folders if one.name[5:].isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    return int(folder.name[5:])


def newest(run: Path, say: Callable[[str], object] | None = None) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    run: the run folder.
    say: called with one line for each checkpoint that was not chosen.
    """
    say = say or (lambda line: None)
    chosen = None
    for folder in reversed(found(run)):
        if chosen is not None:
            say(f"{folder} is not taken: it is older than {chosen.name}")
            continue
        reason = problem(folder)
        if reason is None:
            chosen = folder
        else:
            say(f"{folder} is not whole and is passed over: {reason}")
    return chosen


def best(folders: Sequence[Path], count: int) -> list[Path]:
    """The `count` of these checkpoints with the least validation loss, best first; those never measured are none."""
    measured = []
    for folder in folders:
        try:
            loss = Manifest.load(folder).validation_loss
        except CheckpointError:
            continue
        if loss is not None:
            measured.append((loss, step_of(folder), folder))
    return [folder for _, _, folder in sorted(measured)[:count]]


def best_known(run: Path) -> dict[str, Any]:
    """step, checkpoint and loss of the checkpoint with the least validation loss so far; empty before the first.

    From best.json; where that is not there or is damaged, from what the checkpoints that are left say of themselves.
    """
    path = run / "best.json"
    try:
        known = json.loads(path.read_bytes()) if path.is_file() else None
    except ValueError:
        known = None
    if isinstance(known, dict) and (not known or {"step", "checkpoint", "loss"} <= known.keys()):
        return known
    for folder in best(found(run), 1):
        loss = Manifest.load(folder).validation_loss
        return {"step": step_of(folder), "checkpoint": f"checkpoints/{folder.name}", "loss": loss}
    return {}


def not_kept(folders: Sequence[Path], keep_last: int, keep_best: int) -> list[Path]:
    """Of these checkpoints, oldest first, all but the newest `keep_last` and the best `keep_best`."""
    kept = {*folders[-keep_last:], *best(folders, keep_best)}
    return [folder for folder in folders if folder not in kept]


def set_aside(folders: Sequence[Path]) -> list[Path]:
    """Take checkpoints out of the run by renaming them; returns what is left to remove.

    A folder half removed must not look like a checkpoint.
    """
    gone = [folder.with_name(f".{folder.name}.gone") for folder in folders]
    for folder, aside in zip(folders, gone, strict=True):
        folder.rename(aside)
    return gone


def remove(folders: Sequence[Path]) -> None:
    """Remove what was set aside. What the disk will not let go of now is removed at the run's next start."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def prune(run: Path, keep_last: int, keep_best: int, upto: int | None = None) -> list[Path]:
    """Take all checkpoints but the newest and the best out of a run; returns what is left to `remove`.

    upto: the run's newest step: what claims to be newer was passed over as damaged and does not count.
    """
    folders = [folder for folder in found(run) if upto is None or step_of(folder) <= upto]
    return set_aside(not_kept(folders, keep_last, keep_best))


def clear_unfinished(run: Path) -> None:
    """Take away what a save or a removal that was cut short left behind."""
    for folder in (Path(run) / "checkpoints").glob(".step-*"):
        shutil.rmtree(folder)


def lacking_space(folder: Path, needed: int) -> str | None:
    """Why a checkpoint of `needed` bytes cannot be written into a folder, or None where its disk has room."""
    free = shutil.disk_usage(folder).free
    if free >= needed + SPARE_BYTES:
        return None
    return f"{folder} has {free / 1e9:.2f} GB free and a checkpoint takes {needed / 1e9:.2f} GB"


def show(run: Path) -> int:
    """Print a line for each checkpoint; sizes are looked at, hashes are not."""
    folders = found(run)
    chosen = best(folders, 1)
    for folder in folders:
        try:
            manifest = Manifest.load(folder)
        except CheckpointError as error:
            print(f"{folder.name}  not whole: {error}")
            continue
        reasons = [file_problem(folder / name, written, hashed=False) for name, written in manifest.files.items()]
        reason = next((reason for reason in reasons if reason), None)
        size = sum(written.bytes for written in manifest.files.values())
        loss = "-" if manifest.validation_loss is None else f"{manifest.validation_loss:.4f}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "manifest.json").stat().st_mtime))
        print(
            f"{folder.name}  {when}  {size / 1e9:8.3f} GB  {manifest.world_size} ranks  validation loss {loss}"
            f"{'  best' if folder in chosen else ''}{f'  not whole: {reason}' if reason else ''}"
        )
    return 0


def verify(run: Path) -> int:
    """Read and hash every file of every checkpoint; returns DAMAGED where one is not whole."""
    reasons = {folder: problem(folder) for folder in found(run)}
    for folder, reason in reasons.items():
        print(f"{folder.name}  {'whole' if reason is None else f'not whole: {reason}'}", flush=True)
    return DAMAGED if any(reasons.values()) else 0


def prune_by_hand(run: Path, keep_last: int, keep_best: int) -> int:
    """Remove all but the newest and the best of the whole checkpoints; damaged ones are named and left."""
    from train.runs import RunFolder

    folder = RunFolder(run)
    folder.hold()
    clear_unfinished(run)
    whole = []
    for one in found(run):
        reason = problem(one)
        if reason is None:
            whole.append(one)
        else:
            print(f"{one.name}  left alone, not whole: {reason}")
    out = not_kept(whole, keep_last, keep_best)
    for one in whole:
        print(f"{one.name}  {'removed' if one in out else 'kept'}")
    remove(set_aside(out))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.checkpoint", description=__doc__)
    below = parser.add_subparsers(dest="command", required=True)
    texts = {
        "list": "a line for each checkpoint: when, bytes, ranks, validation loss",
        "verify": "read and hash every file of every checkpoint; exit code 1 where one is not whole",
        "prune": "remove all but the newest and the best",
    }
    commands = {name: below.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for command in commands.values():
        command.add_argument("run", type=Path, help="folder of a training run")
    commands["prune"].add_argument("--keep-last", type=int, default=2, help="newest ones kept (default 2)")
    commands["prune"].add_argument("--keep-best", type=int, default=1, help="of the least validation loss (default 1)")
    options = parser.parse_args(arguments)
    try:
        if not found(options.run):
            raise CheckpointError(f"{options.run} has no checkpoints; name the folder of a run, as runs/default")
        if options.command == "list":
            return show(options.run)
        if options.command == "verify":
            return verify(options.run)
        if options.keep_last < 1 or options.keep_best < 0:
            raise CheckpointError("--keep-last is at least 1 and --keep-best at least 0")
        return prune_by_hand(options.run, options.keep_last, options.keep_best)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
