"""The first hour of docs/clusters.md, done by somebody new: every command of the page, in its order, as it stands.

The cluster is smaller than the page's, so the folder in which they are typed differs in three things: the published
name leads to a small model, train/configs/default.yaml trains a few small steps, and a node has one slot.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.build import main as build
from data.sample.catalogue import write_sample
from tests.factories.jobs import SITE
from tests.factories.machines import Machines
from tests.factories.published_name import clean_environment, fill_cache, link_checkout
from tests.factories.slurm import DONE, Slurm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
BLOCKS = [
    (kind, text) for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if kind != "text"
]
SMALL = """\
extends: full_8x80gb.yaml
model: {precision: fp32}
data: {pack_length: 512, workers: 1}
batch: {global_batch_packs: 2}
evaluate: {packs: 2}
stop: {epochs: null, steps: 4}
"""
ROWS = 80
BY_SSH = {"cp", "python", "ssh", "deepspeed"}
BY_SLURM = {"srun", "sbatch", "launch/submit", "launch/status"}


class Newcomer:
    """Somebody who types the page's commands, and waits for what they start."""

    def __init__(self, folder: Path, slurm: Slurm, by_ssh: dict[str, str], by_slurm: dict[str, str]) -> None:
        self.folder = folder
        self.slurm = slurm
        self.by_ssh = by_ssh
        self.by_slurm = by_slurm

    def type_block(self, kind: str, text: str) -> None:
        """Run a block of the page; fails for a command that does, and for one that nothing here can run."""
        lines = [line for line in text.splitlines() if line.strip()]
        if kind == "bash":
            return self.run("login", ["bash", "-euo", "pipefail", "-c", text], self.by_slurm)
        assert kind == "console", f"a block of commands is marked bash or console, not {kind!r}"
        programs = {shlex.split(line, comments=True)[0] for line in lines}
        if programs == {"torchrun"}:
            # One on each node, at the same time.
            with ThreadPoolExecutor() as pool:
                list(pool.map(self.type_line, ("node1", "node2"), lines))
            return None
        for line in lines:
            self.type_line("node1" if shlex.split(line, comments=True)[0] in BY_SSH else "login", line)
            if line.startswith("cp launch/hosts.example launch/hosts"):
                hosts = self.folder / "launch/hosts"
                hosts.write_text(hosts.read_text().replace("slots=8", "slots=1"))
        return None

    def type_line(self, machine: str, line: str) -> None:
        """Run a command, and the jobs that it submits, to their end."""
        words = shlex.split(line, comments=True)
        assert words[0] in {*BY_SSH, *BY_SLURM, "torchrun"}, f"nothing here runs: {line}"
        known = set(self.jobs())
        self.run(machine, words, self.by_slurm if words[0] in BY_SLURM else self.by_ssh)
        for job in sorted(set(self.jobs()) - known):
            ended = self.slurm.wait_done(job, 300)
            for path in self.folder.glob(f"phi3-vision*-{job}*.log"):
                print(path.name, path.read_text()[-3000:], sep="\n")
            assert ended == "COMPLETED", f"{line}: job {job} {ended}"

    def run(self, machine: str, command: list[str], environment: dict[str, str]) -> None:
        """Run a command to its end in the folder."""
        done = self.slurm.machines.run(
            command, machine=machine, folder=self.folder, environment=environment, limit_s=300
        )
        print(f"$ {shlex.join(command)}\n{done.stdout[-3000:]}")
        assert done.returncode == 0, shlex.join(command)

    def jobs(self) -> dict[int, str]:
        """The jobs that Slurm knows, with their states."""
        shown = self.slurm.ask("scontrol", "show", "job", "-o")
        return {int(job): state for job, state in re.findall(r"^JobId=(\d+) .*? JobState=(\w+)", shown, re.MULTILINE)}


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, machines: Machines, slurm: Slurm) -> Iterator[Newcomer]:
    """A checkout on a shared folder, with a catalogue, shards, and a model under the published name."""
    folder = tmp_path_factory.mktemp("newcomer") / "checkout"
    link_checkout(folder)
    (folder / "train").unlink()
    shutil.copytree(ROOT / "train", folder / "train", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "train/configs/default.yaml").write_text(SMALL)
    (folder / "launch/site.env").unlink()
    (folder / "launch/site.env").write_text(SITE)
    write_sample(folder / "catalogue", ROWS, 0, None)
    arguments = ["--preset", "burberry", "--source", str(folder / "catalogue/catalogue.csv")]
    arguments += ["--output", str(folder / "shards"), "--max-rejected", "1", "--workers", "0"]
    assert build(arguments) == 0
    found = fill_cache(folder.parent / "cache", folder / "shards")
    found |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    yield Newcomer(folder, slurm, clean_environment(machines.base, found), clean_environment(slurm.environment, found))
    for job, state in Newcomer(folder, slurm, {}, {}).jobs().items():
        if state not in DONE:
            slurm.ask("scancel", str(job))


def state(newcomer: Newcomer, run: str) -> tuple[str, int]:
    """State and step of a run."""
    status = json.loads((newcomer.folder / "runs" / run / "status.json").read_text())
    return status["state"], status["step"]


@pytest.mark.parametrize(
    ("kind", "text"), BLOCKS, ids=[re.sub(r"\W+", "-", text[:40]).strip("-") for _, text in BLOCKS]
)
def test_a_block_of_the_page_does_what_it_says(newcomer: Newcomer, kind: str, text: str) -> None:
    if "runs/default" in text:
        (newcomer.folder / "runs/default").symlink_to("first")  # the bare command's, of which the page speaks there
    newcomer.type_block(kind, text)
    for check in (check for part, check in AFTERWARDS.items() if part in text):
        check(newcomer)


def check_chain(newcomer: Newcomer) -> None:
    """Shards by arrays, a training on two nodes, scores, an export: all of one line."""
    assert state(newcomer, "chain") == ("finished", 4)
    logs = [path.read_text() for path in newcomer.folder.glob("phi3-vision-[0-9]*.log")]
    assert any("runs/chain" in text and "2 ranks" in text for text in logs)
    assert json.loads((newcomer.folder / "built/manifest.json").read_text())
    assert len(list(newcomer.folder.glob("phi3-vision-shards-*.log"))) == 6
    assert (newcomer.folder / "runs/chain/report.html").is_file()
    assert (newcomer.folder / "runs/chain/export/model.safetensors").is_file()
    said = newcomer.slurm.ask("launch/status", "chain", folder=newcomer.folder)
    assert "runs/chain: finished (stop.steps = 4), step 4 of 4" in said
    assert "first error" not in said


def finished(run: str, steps: int = 4) -> Callable[[Newcomer], None]:
    """That a run is finished after so many steps."""

    def check(newcomer: Newcomer) -> None:
        assert state(newcomer, run) == ("finished", steps)

    return check


AFTERWARDS: dict[str, Callable[[Newcomer], None]] = {
    "--run first --set stop.steps=6": finished("first", 6),
    "--run products --nodes 2\n": finished("products"),
    "--run one-of-them": finished("one-of-them"),
    "--run hosts": finished("hosts"),
    "run.name=torchrun": finished("torchrun"),
    "--run by-hand": finished("by-hand"),
    "--run chain": check_chain,
}


def test_the_page_was_read_to_its_end() -> None:
    """What is checked after a command is checked: each stands in the page."""
    page = "".join(text for _, text in BLOCKS)
    assert [part for part in AFTERWARDS if part not in page] == []
    assert len(BLOCKS) >= 10
