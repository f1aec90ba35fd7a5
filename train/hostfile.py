"""Looks at a hostfile before DeepSpeed's launcher does, and writes the variables that the launcher takes along.

    python -m train.hostfile [launch/hosts] [--pass NAME …] [--dry-run]

Every host: is it there once, does its name lead somewhere, does ssh get in without a password, are folder and Python
there, has it as many GPUs as slots. Then `.deepspeed_env`: pdsh hands on only variables that begin with NCCL, PYTHON,
MLFLOW, MV2 or UCX, and the launcher crashes at an empty line or a comment in that file. Exit codes: 0, or 2 with every
problem and what to write. No torch.
"""

import argparse
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.schema import UserError
from data.whole import write_whole
from train.node_facts import SECRET

USER_ERROR = 2
HOSTS = Path("launch/hosts")
VARIABLES = Path(".deepspeed_env")
LINE = re.compile(r"^(\S+)\s+slots=(\d+)$")
HANDED_ON = ("NCCL", "PYTHON", "MLFLOW", "MV2", "UCX")  # deepspeed/launcher/runner.py
# Taken along where they are set; NCCL_* and PYTHON* go by themselves.
WANTED = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"),
    *("LD_LIBRARY_PATH", "CUDA_HOME", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR"),
    *("TMPDIR", "SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY"),
)
UNSAFE = re.compile(r"[\n\"$`\\]")
CONNECT_S = 10
ANSWER_S = 60
AT_ONCE = 32


class HostfileError(UserError):
    """What is wrong with a hostfile, its hosts or the variables; a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A line of the hostfile."""

    name: str
    slots: int
    where: str
    """File and line."""


def parse_hosts(text: str, path: str) -> list[Host]:
    """The hosts of a hostfile; raises HostfileError with every line that the launcher would stumble over."""
    hosts: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        line, where = line.strip(), f"{path}:{number}"
        if not line or line.startswith("#"):
            continue
        found = LINE.match(line)
        if found is None:
            problems.append(f"{where}: {line!r}: expected a name and its GPUs, as `node-1 slots=8`, and nothing behind")
        elif int(found[2]) == 0:
            problems.append(f"{where}: {found[1]} has no slots; take the line out, or write how many GPUs it has")
        elif found[1] in hosts:
            problems.append(f"{where}: {found[1]} stands in {hosts[found[1]].where} already; take one of the lines out")
        else:
            hosts[found[1]] = Host(name=found[1], slots=int(found[2]), where=where)
    if not hosts and not problems:
        problems.append(
            f"{path}: no host in it; write a line a node, as `node-1 slots=8`, or remove the file to train here"
        )
    if problems:
        raise HostfileError("\n".join(problems))
    return list(hosts.values())


def address_problem(host: Host) -> str | None:
    """Why a host's name leads nowhere, as ssh would look it up; None where it does not."""
    asked = subprocess.run(["ssh", "-G", host.name], capture_output=True, text=True, check=False)
    named = re.search(r"^hostname (\S+)$", asked.stdout, re.MULTILINE)
    if re.search(r"^proxy(command|jump) (?!none)", asked.stdout, re.MULTILINE):
        return None
    try:
        socket.getaddrinfo(named[1] if named else host.name, 22)
    except OSError:
        return (
            f"{host.where}: the name {host.name} leads nowhere; is it misspelt? Else write it into /etc/hosts "
            f"of all nodes, or `Host {host.name}` with its HostName into ~/.ssh/config"
        )
    return None


def ssh_problem(host: Host, said: str) -> str:
    """What to do where ssh does not get in; `said`: its own words."""
    if "Permission denied" in said:
        return f"{host.where}: ssh to {host.name} asks for a password; let a key in: ssh-copy-id {host.name}"
    if "Host key verification failed" in said:
        return f"{host.where}: ssh does not know {host.name} yet; say yes to it once: ssh {host.name} true"
    last = said.strip().splitlines()[-1] if said.strip() else f"no answer within {ANSWER_S} s"
    return f"{host.where}: ssh does not reach {host.name}: {last}; try `ssh {host.name} true`"


def look(host: Host, folder: Path, python: str) -> list[str]:
    """What is wrong with a host, seen by ssh; raises nothing."""
    problem = address_problem(host)
    if problem:
        return [problem]
    script = (
        f"test -f {shlex.quote(str(folder))}/train/main.py && echo folder; "
        f"test -x {shlex.quote(python)} && echo python; "
        "command -v nvidia-smi >/dev/null && echo gpus=$(nvidia-smi -L | grep -c ^GPU); echo end"
    )
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", host.name, script]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return [ssh_problem(host, "")]
    said = done.stdout.split()
    if "end" not in said:
        return [ssh_problem(host, done.stderr)]
    problems = []
    if "folder" not in said:
        problems.append(
            f"{host.where}: {host.name} has no checkout at {folder}; put it under the same path, or share it"
        )
    if "python" not in said:
        problems.append(
            f"{host.where}: {host.name} has no {python}; put the environment under the same path, or share it"
        )
    gpus = next((int(word.removeprefix("gpus=")) for word in said if word.startswith("gpus=")), None)
    if gpus is not None and gpus != host.slots:
        problems.append(f"{host.where}: {host.name} has {gpus} GPUs, not {host.slots}; write: {host.name} slots={gpus}")
    return problems


def read_variables(path: Path) -> dict[str, str]:
    """The variables of a `.deepspeed_env`; raises HostfileError for lines that crash the launcher, and for secrets."""
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        name, sign, value = line.partition("=")
        where = f"{path}:{number}"
        if not sign or not re.fullmatch(r"[A-Za-z_]\w*", name):
            what = "an empty line" if not line.strip() else f"{line!r}"
            problems.append(f"{where}: {what} stops DeepSpeed's launcher; only lines NAME=value may stand there")
        elif SECRET.search(name):
            problems.append(secret(where, name))
        else:
            values[name] = value
    if problems:
        raise HostfileError("\n".join(problems))
    return values


def secret(where: str, name: str) -> str:
    """What to do with a secret that would stand in the command lines of all nodes."""
    return (
        f"{where}: {name} would be seen in the command line of every node; take it out, and keep it in a file of "
        "your own: ~/.netrc (`wandb login`), `hf auth login`"
    )


def choose_variables(environment: Mapping[str, str], known: Mapping[str, str], more: Sequence[str]) -> dict[str, str]:
    """What `.deepspeed_env` shall hold: what it held, and the variables of here that the launcher would leave behind.

    Raises HostfileError for a secret, for one that is not set, and for a value that another shell would change.
    """
    problems = [secret("--pass", name) for name in more if SECRET.search(name)]
    problems += [f"--pass {name}: it is not set here; export it first" for name in more if name not in environment]
    chosen = {name: environment[name] for name in (*WANTED, *more) if environment.get(name)}
    chosen = {name: value for name, value in chosen.items() if not name.startswith(HANDED_ON)}
    for name, value in chosen.items():
        found = UNSAFE.search(value)
        if found:
            problems.append(f"{name}: its value has {found[0]!r} in it, which the other nodes' shells would change")
    if problems:
        raise HostfileError("\n".join(problems))
    return {**known, **chosen}


def check_hosts(path: Path, folder: Path, python: str) -> list[Host]:
    """The hosts of a hostfile, all of them fit to start ranks on; raises HostfileError with all that is wrong."""
    if not path.is_file():
        raise HostfileError(f"{path}: not there; `cp launch/hosts.example {path}` and write a line a node into it")
    hosts = parse_hosts(path.read_text(), str(path))
    if len(hosts) > 1 and shutil.which("pdsh") is None:
        raise HostfileError("pdsh is not installed here; apt-get install pdsh (Slurm and torchrun do without)")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        problems = [line for found in pool.map(lambda host: look(host, folder, python), hosts) for line in found]
    if problems:
        raise HostfileError("\n".join(problems))
    return hosts


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.hostfile", description="Check a hostfile's hosts.")
    parser.add_argument("hosts", nargs="?", type=Path, default=HOSTS, help="default: launch/hosts")
    parser.add_argument(
        "--pass", action="append", default=[], dest="more", metavar="NAME", help="a variable to take too"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        known = read_variables(VARIABLES)
        read_variables(Path.home() / VARIABLES)  # the launcher reads it too
        variables = choose_variables(os.environ, known, options.more)
        hosts = check_hosts(options.hosts, Path.cwd(), sys.executable)
    except HostfileError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return USER_ERROR
    if not options.dry_run:
        write_whole(VARIABLES, "".join(f"{name}={value}\n" for name, value in variables.items()).encode())
    ranks = sum(host.slots for host in hosts)
    print(f"{options.hosts}: {len(hosts)} hosts, {ranks} ranks; all can be reached")
    print(f"{VARIABLES}: {', '.join(variables) or 'nothing to take along'}")
    if len(hosts) == 1 and hosts[0].name not in (socket.gethostname(), "localhost"):
        print(f"the launcher starts a hostfile's only host where you type: do so on {hosts[0].name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
