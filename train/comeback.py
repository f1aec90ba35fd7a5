"""What becomes of a Slurm job whose training ended before its time: back into the queue, or stopped with the reason.

    python -m train.comeback --code CODE [--asked USR1] -- ARGUMENTS OF train/main.py

The last thing in launch/train.sbatch. A job comes back with its number, so that those that depend on it wait on: after
SIGUSR1 (the time limit is near, or somebody asked), after a preemption, after a rank or a node that was lost, and
without the nodes that no longer answer or that the preflight named. It does not come back after an error that a person
has to mend, after scancel, or when three tries in a row came no further. No torch.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.schema import UserError
from data.whole import write_whole
from train.config import load
from train.main import parse
from train.rank_log import RankEnd, error_lines, first_error, read_ends
from train.runs import RunFolder, own_job

TRIES = 3
ANSWER_S = 30
USER_ERROR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a try ended."""

    code: int
    """Exit code of srun."""
    asked: str
    """The signal that the batch script passed on, or empty."""
    status: Mapping[str, Any]
    """status.json of the run."""
    reached: tuple[int, ...]
    """The highest step of each try so far, this one last; those that were asked to leave are not among them."""
    first: RankEnd | None
    """The rank that failed first."""
    preempted: bool = False
    """Whether Slurm wants the nodes for another job, and this one back later."""
    unfit: tuple[str, ...] = ()
    """Nodes that do not answer, or that the preflight found to be at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do, and what to say of it."""

    back: bool
    reason: str
    code: int = 0
    """Exit code of the job where it does not come back."""
    without: tuple[str, ...] = ()


def decide(ended: Ended) -> Decision:
    """Whether a job comes back."""
    state, reason = ended.status.get("state"), str(ended.status.get("reason", ""))
    if ended.code == 0 and state == "finished":
        return Decision(back=False, reason="finished")
    # A training that was asked to leave ends well; where it did not, the status is that of an earlier try.
    saved = ended.code == 0 and state == "preempted"
    left = ended.asked or (reason.partition(" ")[0].removeprefix("SIG") if saved else "")
    said = reason if saved else f"SIG{left or 'TERM'}"
    if ended.preempted or left == "USR1":
        return Decision(back=True, reason=f"{said}, preempted" if ended.preempted else said)
    if left:
        return Decision(back=False, reason=f"{said}; unless Slurm puts it back, submit the same line to go on")
    if ended.first is not None and ended.first.ending == "mendable" and not ended.unfit:
        return Decision(back=False, reason=ended.first.line(), code=USER_ERROR)
    tries = ended.reached[-TRIES:]
    if len(tries) == TRIES and max(tries) <= max(ended.reached[:-TRIES], default=tries[0]):
        said = f"; last: {ended.first.line()}" if ended.first else ""
        return Decision(back=False, reason=f"no new step in {TRIES} tries (step {max(tries)}){said}", code=1)
    why = ended.first.line() if ended.first else reason or f"srun ended with code {ended.code}"
    return Decision(back=True, reason=why, without=ended.unfit)


def highest_step(run: RunFolder) -> int:
    """The last step that any metrics line or the status names."""
    lines = run.metrics.read_text().splitlines() if run.metrics.is_file() else []
    steps = [json.loads(line)["step"] for line in lines[-50:] if line.endswith("}")]
    return max([0, *steps, int(run.status().get("step", 0))])


def add_try(run: RunFolder, asked: bool) -> tuple[int, ...]:
    """Note in tries.json how far this try came; returns that of all. One that was asked to leave ends the count."""
    path = run.path / "tries.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    now = [] if asked else [*known, highest_step(run)]
    run.path.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(now) + "\n").encode())
    return tuple(now)


def nodes_of(environment: Mapping[str, str]) -> list[str]:
    """The nodes of this job."""
    shown = subprocess.run(
        ["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
        timeout=ANSWER_S,
    )
    return shown.stdout.split()


def answers(node: str) -> bool:
    """Whether a node of this job still starts what it is told to."""
    command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "true"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def at_fault(run: RunFolder, since: float) -> set[str]:
    """The nodes that a preflight of this try found to be at fault."""
    path = run.path / "preflight.json"
    if not path.is_file() or path.stat().st_mtime < since:
        return set()
    return {one["node"] for one in json.loads(path.read_text())["findings"] if one["fault"]}


def unfit_nodes(run: RunFolder, since: float, asks: Callable[[str], bool] = answers) -> tuple[str, ...]:
    """The nodes that this job should come back without; none where that would leave none."""
    nodes = nodes_of(os.environ)
    named = at_fault(run, since)
    unfit = tuple(node for node in nodes if node in named or not asks(node))
    return unfit if len(unfit) < len(nodes) else ()


def exclude_later(job: str, without: Sequence[str]) -> bool:
    """Have a job of a moment take nodes out of this one's choice while it waits, for it cannot be changed sooner, and
    release it; whether there is one."""
    excluded = ",".join(without)
    change = (
        f'while s=$(squeue -h -j {job} -o %t) && [ -n "$s" ]; do '
        f"[ $s = PD ] && scontrol update JobId={job} ExcNodeList={excluded} && break; sleep 2; done; "
        f"scontrol release {job}"
    )
    helper = ["sbatch", "--job-name=change-a-job", "--nodes=1", "--ntasks=1", "--time=10", "--output=/dev/null"]
    same = {"--partition": "SLURM_JOB_PARTITION", "--account": "SLURM_JOB_ACCOUNT"}
    helper += [f"{option}={os.environ[name]}" for option, name in same.items() if os.environ.get(name)]
    helper += [f"--exclude={excluded}", f"--wrap={change}"]
    # Else sbatch takes this job's own shape for the other's.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    own |= {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    return subprocess.run(helper, env=own, timeout=ANSWER_S, check=False).returncode == 0


def is_preempted(job: str) -> bool:
    """Whether Slurm has told this job to make room for another and gives it time for that.

    It then puts back only a job that is still there when the time is over: one that leaves sooner would count as done.
    """
    command = ["scontrol", "show", "job", "-o", job]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False).stdout
    words = dict(word.partition("=")[::2] for word in shown.split())
    return words.get("JobState") == "RUNNING" and words.get("PreemptTime", "None") != "None"


def come_back(job: str, without: Sequence[str]) -> None:
    """Put this job back into the queue; ends the calling process, as it is part of the job."""
    held = bool(without) and exclude_later(job, without)
    subprocess.run(["scontrol", "requeuehold" if held else "requeue", job], check=True, timeout=ANSWER_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Decide and do it; returns the exit code of the job."""
    parser = argparse.ArgumentParser(prog="python -m train.comeback", description="After a training under Slurm.")
    parser.add_argument("--code", type=int, required=True, help="exit code of srun")
    parser.add_argument("--asked", default="", help="the signal that was passed on: USR1, TERM")
    parser.add_argument("--since", type=float, default=0.0, help="when this try began, seconds since 1970")
    parser.add_argument("training", nargs="*", help="the arguments of train/main.py, after --")
    options = parser.parse_args(arguments)
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        print("error: this goes on within a Slurm job; submit launch/train.sbatch", file=sys.stderr)
        return USER_ERROR
    try:
        training = parse(options.training)
        config = load(training.config, training.overrides, training.run)
    except UserError:
        return options.code or USER_ERROR  # training has said so
    run = RunFolder(Path(config.run.folder) / str(config.run.name))
    said, held = run.holder()
    if held and not said.endswith(own_job()):
        print(f"{config.run.name} is another job's ({said}): nothing is done with it", flush=True)
        return options.code or USER_ERROR
    ends = read_ends(run.path)
    state = str(run.status().get("state"))
    well = options.code == 0
    preempted = is_preempted(job)
    asked = preempted or bool(options.asked) or (well and state == "preempted")
    if not well and not asked:
        print("\n".join(error_lines(ends)), flush=True)  # before a node is asked that may not answer for long
    ended = Ended(
        code=options.code,
        asked=options.asked,
        status=run.status(),
        reached=add_try(run, asked or well),
        first=None if well else first_error(ends),
        preempted=preempted,
        unfit=() if asked or well else unfit_nodes(run, options.since),
    )
    decision = decide(ended)
    print(f"{time.strftime('%H:%M:%S')} {config.run.name}: {decision.reason}", flush=True)
    if not decision.back:
        if decision.code and state != "finished":
            run.set_stopped(decision.reason)
        return decision.code
    without = f", without {', '.join(decision.without)}" if decision.without else ""
    print(f"job {job} goes back into the queue{without}", flush=True)
    come_back(job, decision.without)
    return 0


if __name__ == "__main__":
    sys.exit(main())
