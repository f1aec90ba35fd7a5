"""Fine-tunes Phi-3-vision with DeepSpeed ZeRO.

    deepspeed [--hostfile launch/hosts] train/main.py [--config FILE] [--set section.key=value …] [--run NAME]
        [--preflight never] [--profile 10-12] [--dry-run [--nodes N] [--gpus G] [--gpu-memory 80GiB] [--rate TOKENS]]

torchrun, srun and plain python start it as well (torchrun takes --run for an option of its own: give it
`--set run.name=NAME`). The same command goes on with a run that was ended before its time.
Exit codes: 0 trained to the end, or saved and left because a signal asked for it; 2 something the user can mend;
1 anything else.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # One that comes while the program is being read would end this rank; it is held back until `main` can note it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

import argparse
import importlib.util
import math
import os
import socket
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from data.schema import UserError
from train.config import DEFAULT, load, origins
from train.config_schema import Config
from train.deepspeed_config import read
from train.distributed import Place, bring_together, end_at_once, find_place, part
from train.material import check
from train.preemption import Preemption
from train.rank_log import RankLog, ending_of
from train.runs import HeldError, RunFolder

USER_ERROR = 2


def positive(text: str, kind: type[int] | type[float] = int) -> float:
    """A number above zero, for argparse."""
    with suppress(ValueError):
        number = kind(text)
        if 0 < number < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number above zero")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="train/main.py", description="Fine-tune Phi-3-vision with DeepSpeed ZeRO.")
    parser.add_argument(
        "--config", default=str(DEFAULT), metavar="FILE", help="settings (default: train/configs/default.yaml)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="a setting over the file's",
    )
    parser.add_argument(
        "--run", metavar="NAME", help="name of the run's folder (default: run.name, or the file's name)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print settings, memory, what fits, what would be trained and how long; needs no GPU",
    )
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines of the dry run (default: 1)")
    parser.add_argument("--gpus", type=positive, default=8, metavar="G", help="GPUs of each of them (default: 8)")
    parser.add_argument(
        "--gpu-memory", default="80GiB", metavar="SIZE", help="memory of each GPU, as 80GiB or 24GB (default: 80GiB)"
    )
    parser.add_argument(
        "--rate",
        type=partial(positive, kind=float),
        metavar="TOKENS",
        help="tokens a second, of all ranks together, to count the dry run's hours by (default: this run's, so far)",
    )
    parser.add_argument(
        "--preflight",
        choices=("auto", "always", "never"),
        default="auto",
        help="look at every node before training; auto: where there are several",
    )
    parser.add_argument(
        "--profile", metavar="STEPS", help="write a torch trace of rank 0's steps, 12 or 10-12, into the run's folder"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(arguments)


def say_before(options: argparse.Namespace, config: Config) -> None:
    """Print what a dry run says; raises UserError, after settings and memory, for material that is not there."""
    from train.before import before_lines, settings_lines, time_lines
    from train.dry_run import dry_run, open_dry
    from train.estimate.report import Machine, parse_memory

    if importlib.util.find_spec("deepspeed"):
        from train.deepspeed_checks import check_sections

        check_sections(read(config), config.deepspeed)
    else:
        print(f"DeepSpeed is not installed here: what {config.deepspeed} has inside its sections is not looked at")
    machine = Machine(nodes=options.nodes, gpus=options.gpus, gpu_memory=parse_memory(options.gpu_memory))
    for line in settings_lines(config, origins(options.config, options.overrides), machine):
        print(line, flush=True)
    try:
        check(config, fetch=True)
    except UserError:
        for line in before_lines(config, machine, None):
            print(line, flush=True)
        raise
    plan = open_dry(config)
    for lines in (before_lines(config, machine, plan), time_lines(config, plan, options.rate), dry_run(config)):
        for line in lines:
            print(line, flush=True)


def tell(place: Place, error: BaseException) -> None:
    """Print an error once a node; other ranks wait a moment, or a launcher would end the speaker before it spoke."""
    if not getattr(error, "tells", place.speaks):
        time.sleep(1.0)
        return
    where = f"[rank {place.rank} on {socket.gethostname()}] " if place.rank else ""
    if isinstance(error, UserError):
        print(f"{where}error: {error}", file=sys.stderr, flush=True)
    elif ending_of(error) == "lost":
        print(
            f"{where}error: lost contact with another rank, which was ended or ran out of memory; its own messages "
            "say why. The same command goes on from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
    else:
        traceback.print_exception(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code."""
    options = parse(arguments)
    place = find_place(os.environ)
    log = None
    try:
        config = load(options.config, options.overrides, options.run)
        settings = read(config)
        if options.dry_run:
            if place.rank == 0:
                say_before(options, config)
            return 0
        preemption = Preemption()
        preemption.remember()
        run = RunFolder(Path(config.run.folder) / str(config.run.name))
        run.check_free(partial(print, flush=True) if place.rank == 0 else None)
        log = RankLog(run.path, place)
        log.start()
        check(config, fetch=place.local_rank == 0)
        world = bring_together(place, os.environ)
    except UserError as error:
        if log is not None:
            log.finish("mendable", str(error))
        tell(place, error)
        return USER_ERROR
    try:
        from train.job import work
        from train.preflight import preflight

        if options.preflight == "always" or (options.preflight == "auto" and place.several_nodes):
            preflight(world, config, run.path)
        work(config, settings, run, world, preemption, partial(log.finish, "lost"), options.profile)
        preemption.leave()
        part()
        log.finish("well")
        return 0
    except BaseException as error:
        mendable = isinstance(error, UserError)
        if not isinstance(error, HeldError):  # then the record is of the job that holds the run
            log.finish(ending_of(error), str(error) if mendable else f"{type(error).__name__}: {error}")
        run.set_failed(str(error) if mendable else f"rank {world.rank}: {type(error).__name__}: {error}")
        if not mendable and not place.speaks:  # a fault of this rank alone stands nowhere else
            log.note("".join(traceback.format_exception(error)))
        tell(place, error)
        end_at_once(USER_ERROR if mendable else 1)
    return 1


if __name__ == "__main__":
    sys.exit(main())
