"""Submits the stages of a run to Slurm, each waiting for the one before it.

    launch/submit train --config FILE --run NAME --nodes 4
    launch/submit shards train evaluate export --preset burberry --source catalogue.csv --parts 8 --run NAME --nodes 4

Looks first at what can be known before a job is queued: settings, shards, model, the run's folder, partitions. What
differs from cluster to cluster stands in launch/site.env. `--dry-run` prints the commands, has Slurm judge them
(`sbatch --test-only`), and submits nothing. No torch.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.schema import UserError
from train.config import DEFAULT, load
from train.config_schema import Config
from train.deepspeed_config import read
from train.material import check, find_model
from train.runs import RunFolder

STAGES = ("shards", "train", "evaluate", "export")
SITE = Path("launch/site.env")
SITE_DEFAULTS = {
    "GPU_PARTITION": "",
    "CPU_PARTITION": "",
    "ACCOUNT": "",
    "GPUS_PER_NODE": "8",
    "RANKS_PER_NODE": "8",
    "CPUS_PER_RANK": "4",
    "TRAIN_TIME": "24:00:00",
    "GRACE_S": "300",
}
NUMBERS = ("GPUS_PER_NODE", "RANKS_PER_NODE", "CPUS_PER_RANK", "GRACE_S")
USER_ERROR = 2
ANSWER_S = 60


class SubmitError(UserError):
    """Something that would fail in the queue, or Slurm's own refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sbatch command."""

    name: str
    options: tuple[str, ...]
    script: str
    arguments: tuple[str, ...]

    def command(self, after: str | None = None) -> list[str]:
        """The command line; `after`: the job that has to end well before."""
        waits = (f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes") if after else ()
        return ["sbatch", "--parsable", *self.options, *waits, self.script, *self.arguments]


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs; raises SubmitError where it does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired as error:
        raise SubmitError(f"{command[0]} has not answered within {ANSWER_S} s; is slurmctld up? (`sinfo`)") from error


def read_site(path: Path = SITE) -> dict[str, str]:
    """The values of launch/site.env; defaults where it is not there. Raises SubmitError for what is no number."""
    values = dict(SITE_DEFAULTS)
    if path.is_file():
        wanted = " ".join(SITE_DEFAULTS)
        script = f'. "$0" && for name in {wanted}; do printf "%s=%s\\n" "$name" "${{!name-}}"; done'
        shown = subprocess.run(
            ["bash", "-euc", script, str(path.resolve())], capture_output=True, text=True, check=False
        )
        if shown.returncode:
            raise SubmitError(f"{path}: {shown.stderr.strip()}; mend that line")
        found = dict(line.split("=", 1) for line in shown.stdout.splitlines())
        values |= {name: value for name, value in found.items() if value}
    for name in NUMBERS:
        if not values[name].isdigit():
            raise SubmitError(f"{path}: {name}={values[name]}: expected a whole number")
    return values


def where(partition: str, site: Mapping[str, str]) -> tuple[str, ...]:
    """Options that say where a job runs and who pays."""
    named = (("--partition", partition), ("--account", site["ACCOUNT"]))
    return tuple(f"{option}={value}" for option, value in named if value)


def shard_jobs(options: argparse.Namespace, site: Mapping[str, str]) -> list[Job]:
    """Fetch by an array, put together and split, write by an array, put together."""
    named = ("--preset", options.preset, "--source", options.source, "--output", options.shards)
    arguments = (*named, *shlex.split(options.build))
    cpu = where(site["CPU_PARTITION"] or site["GPU_PARTITION"], site)
    array = (f"--array=1-{options.parts}",)
    return [
        Job(name="shards: fetch", options=cpu + array, script="launch/shards.sbatch", arguments=("fetch", *arguments)),
        Job(name="shards: split", options=cpu, script="launch/shards.sbatch", arguments=("split", *arguments)),
        Job(name="shards: write", options=cpu + array, script="launch/shards.sbatch", arguments=("write", *arguments)),
        Job(name="shards: join", options=cpu, script="launch/shards.sbatch", arguments=("join", *arguments)),
    ]


def train_job(options: argparse.Namespace, site: Mapping[str, str], run: str) -> Job:
    """The training, on as many nodes as are asked for, or fewer where that is allowed."""
    ranks, gpus, cpus = (int(site[name]) for name in ("RANKS_PER_NODE", "GPUS_PER_NODE", "CPUS_PER_RANK"))
    nodes = str(options.nodes)
    shape: tuple[str, ...] = (f"--ntasks-per-node={ranks}", f"--cpus-per-task={cpus}")
    if options.min_nodes and options.min_nodes < options.nodes:
        if gpus not in (0, ranks):
            raise SubmitError(f"{SITE}: RANKS_PER_NODE={ranks}: --min-nodes takes a rank a GPU (GPUS_PER_NODE={gpus})")
        nodes = f"{options.min_nodes}-{options.nodes}"
        # Of a job that asks for tasks, Slurm wants as many nodes as it had when it puts it back; the script starts as
        # many ranks as there are GPUs, or RANKS_PER_NODE.
        shape = (f"--mincpus={ranks * cpus}",)
    settings = [part for one in options.overrides for part in ("--set", one)]
    return Job(
        name="train",
        options=(
            *where(site["GPU_PARTITION"], site),
            f"--nodes={nodes}",
            *shape,
            f"--gpus-per-node={gpus}",
            f"--time={options.time or site['TRAIN_TIME']}",
            f"--signal=B:USR1@{site['GRACE_S']}",
        ),
        script="launch/train.sbatch",
        arguments=("--config", options.config, "--run", run, *settings),
    )


def plan(options: argparse.Namespace, site: Mapping[str, str], config: Config) -> list[Job]:
    """All jobs in their order."""
    run = str(config.run.name)
    folder = f"{config.run.folder}/{run}"
    on_gpu = (*where(site["GPU_PARTITION"], site), f"--gpus-per-node={min(1, int(site['GPUS_PER_NODE']))}")
    on_cpu = where(site["CPU_PARTITION"] or site["GPU_PARTITION"], site)
    jobs = {
        "shards": lambda: shard_jobs(options, site),
        "train": lambda: [train_job(options, site, run)],
        "evaluate": lambda: [
            Job(name="evaluate", options=on_gpu, script="launch/evaluate.sbatch", arguments=(folder,))
        ],
        "export": lambda: [
            Job(
                name="export",
                options=on_cpu,
                script="launch/export.sbatch",
                arguments=(folder, f"{folder}/export", "--overwrite"),
            )
        ],
    }
    return [job for stage in STAGES if stage in options.stages for job in jobs[stage]()]


def check_slurm(options: argparse.Namespace, site: Mapping[str, str]) -> None:
    """Raise SubmitError where there is no Slurm, or not the partitions and nodes that are asked for."""
    if shutil.which("sbatch") is None:
        raise SubmitError(
            "there is no Slurm here (no sbatch); log in where there is one, or start by a hostfile: "
            "deepspeed --hostfile launch/hosts train/main.py"
        )
    shown = ask("sinfo", "-h", "-o", "%R %D")
    if shown.returncode:
        raise SubmitError(f"Slurm does not answer: {shown.stderr.strip() or shown.stdout.strip()}")
    nodes: dict[str, int] = {}
    for line in shown.stdout.splitlines():
        name, count = line.split()
        nodes[name] = nodes.get(name, 0) + int(count)
    for key in ("GPU_PARTITION", "CPU_PARTITION"):
        if site[key] and site[key] not in nodes:
            raise SubmitError(f"{SITE}: {key}={site[key]}: there is no such partition; there are {', '.join(nodes)}")
    largest = nodes[site["GPU_PARTITION"]] if site["GPU_PARTITION"] else max(nodes.values(), default=0)
    if "train" in options.stages and options.nodes > largest:
        raise SubmitError(f"--nodes {options.nodes}: the partition has {largest}; ask for at most as many")


def check_run(options: argparse.Namespace, config: Config) -> None:
    """Raise UserError for what the training would refuse at its start."""
    settings = read(config)
    if "train" in options.stages:
        run = RunFolder(Path(config.run.folder) / str(config.run.name))
        run.compare(config, settings)
        if "shards" in options.stages:
            find_model(config.model.path)
        else:
            check(config, fetch=False)
    elif "evaluate" in options.stages or "export" in options.stages:
        status = RunFolder(Path(config.run.folder) / str(config.run.name)).status()
        if not status:
            raise SubmitError(f"{config.run.folder}/{config.run.name}: there is no such run; submit train before it")


def submit(jobs: Sequence[Job], after: str | None) -> list[tuple[Job, str]]:
    """Queue the jobs one after the other; returns each with its number. Raises SubmitError, having taken back all."""
    done: list[tuple[Job, str]] = []
    for job in jobs:
        said = ask(*job.command(after))
        if said.returncode:
            if done:
                ask("scancel", *(number for _, number in done))
            raise SubmitError(f"{job.name}: Slurm refused it: {said.stderr.strip()}; nothing is queued")
        after = said.stdout.strip().partition(";")[0]
        done.append((job, after))
    return done


def test(jobs: Sequence[Job]) -> None:
    """Print each command and what Slurm says of it; raises SubmitError where it refuses one."""
    for job in jobs:
        print(f"{job.name}: {shlex.join(job.command())}")
        command = job.command()
        said = ask(command[0], "--test-only", *command[1:])
        if said.returncode:
            raise SubmitError(f"{job.name}: Slurm would refuse it: {said.stderr.strip()}")
        print(re.sub(r"^sbatch: ", "  ", said.stderr.strip(), flags=re.MULTILINE))


def say(done: Sequence[tuple[Job, str]], run: str) -> None:
    """How to follow, cancel and resume."""
    numbers = " ".join(number for _, number in done)
    for job, number in done:
        print(f"{job.name:<14} job {number}")
    training = next((number for job, number in done if job.name == "train"), None)
    print(f"follow:  squeue -j {numbers.replace(' ', ',')}")
    if training:
        print(f"         launch/status {run}; tail -F phi3-vision-{training}.log")
        print(f"save, go back into the queue:  scancel --signal=USR1 {training}")
    print(f"cancel:  scancel {numbers}")
    if training:
        print("resume:  the same line again; it goes on from the newest whole checkpoint")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse ends the program for one that is wrong."""
    parser = argparse.ArgumentParser(prog="launch/submit", description="Submit the stages of a run to Slurm.")
    parser.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE", help="shards, train, evaluate, export")
    parser.add_argument("--config", default=str(DEFAULT), metavar="FILE", help="settings of the training")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="over the file's"
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run's folder")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the training (default: 1)")
    parser.add_argument("--min-nodes", type=int, metavar="M", help="begin, or come back, with as few as M nodes")
    parser.add_argument("--time", metavar="LIMIT", help="longest time of the training job (default: launch/site.env)")
    parser.add_argument("--preset", help="of the shards: a preset's name or a mapping's file")
    parser.add_argument("--source", help="of the shards: the catalogue")
    parser.add_argument(
        "--parts", type=int, default=4, metavar="N", help="jobs that share fetch and write (default: 4)"
    )
    parser.add_argument("--build", default="", metavar="OPTIONS", help="further options of data.build, in one word")
    parser.add_argument("--after", metavar="JOB", help="begin when this job has ended well")
    parser.add_argument("--dry-run", action="store_true", help="check and print all, submit nothing")
    options = parser.parse_args(arguments)
    if "shards" in options.stages and not (options.preset and options.source):
        parser.error("shards: --preset and --source say what they are built from")
    if options.nodes < 1 or options.parts < 1 or (options.min_nodes or 1) < 1:
        parser.error("--nodes, --min-nodes and --parts are at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit; returns the exit code."""
    options = parse(arguments)
    try:
        site = read_site()
        config = load(options.config, options.overrides, options.run)
        options.shards = config.data.shard_sets[0].path
        check_slurm(options, site)
        check_run(options, config)
        jobs = plan(options, site, config)
        if options.dry_run:
            test(jobs)
            print("nothing was submitted")
        else:
            say(submit(jobs, options.after), str(config.run.name))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
