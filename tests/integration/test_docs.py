"""The pages are right: what is marked `bash` in them is run, what is marked `console` is known to the programs.

The commands stand in the pages with their real names; the folder in which they run has under these names a small
catalogue, a small model in a Hugging Face cache, and the runs that the README trains.
"""

import ast
import contextlib
import csv
import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.build import main as build
from data.mapping_file import load_mapping
from data.sample.catalogue import write_sample
from tests.factories.published_name import clean_environment, fill_cache, link_checkout
from train.config import load
from train.main import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COLUMNS = {"product_code": "sku", "title": "name", "imageurl": "photo", "category3_code": "department"}
OTHER_PROGRAMS = {"cp", "hf", "ssh"}
SCRIPTS = {"launch/submit": "train.submit", "launch/status": "train.run_status"}
ROWS = 80
LIMIT_S = 1200


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind, in their order."""
    return [text for found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == kind]


def titled() -> dict[str, str]:
    """The YAML files that the pages give in full, by the name in their first line."""
    texts = [text for page in PAGES for text in blocks(page, "yaml")]
    return {text.partition("\n")[0].removeprefix("# "): text for text in texts}


def console_lines() -> list[str]:
    """Every command that is not run here."""
    lines = [line for page in PAGES for text in blocks(page, "console") for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if shlex.split(line, comments=True)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a checkout to those who work in it, with a catalogue of one's own and the files the pages give."""
    folder = tmp_path_factory.mktemp("docs") / "place"
    link_checkout(folder)
    (folder / "docs").symlink_to(ROOT / "docs")
    for name, text in titled().items():
        (folder / name).write_text(text, encoding="utf-8")
    sample = folder.parent / "sample"
    write_sample(sample, ROWS, 0, None)
    shutil.copytree(sample / "pictures", folder / "pictures")
    with (sample / "catalogue.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    with (folder / "catalogue.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow([*COLUMNS.values(), "price", "season"])
        writer.writerows([*(row[name] for name in COLUMNS), row["full_price"], "AW24"] for row in rows)
    shutil.copy(next((folder / "pictures").glob("*.jpg")), folder / "picture.jpg")
    return folder


@pytest.fixture(scope="module")
def environment(place: Path) -> dict[str, str]:
    """Variables under which the published model's name is found, and a port that no other training uses."""
    shards = place.parent / "shards"
    arguments = ["--preset", place / "mapping.yaml", "--source", place / "catalogue.csv", "--output", shards]
    assert build([*map(str, arguments), "--workers", "0"]) == 0
    found = fill_cache(place.parent / "cache", shards)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(sys.executable).parent
    launcher = place.parent / "bin/deepspeed"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\nexec {here}/deepspeed --master_port {port} "$@"\n')
    launcher.chmod(0o755)
    path = f"{launcher.parent}:{here}:{os.environ['PATH']}"
    on_cpu = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "LOCAL_SIZE": "1"}
    return clean_environment(os.environ, {**found, **on_cpu, "PATH": path})


def run_blocks(page: Path, folder: Path, environment: dict[str, str]) -> str:
    """Run a page's commands in a folder, block by block; returns what they printed."""
    printed = ""
    for text in blocks(page, "bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stdout[-6000:]}"
        printed += done.stdout
    return printed


@pytest.fixture(scope="module")
def trained(place: Path, environment: dict[str, str]) -> Path:
    """The folder after the README's commands: shards, runs/default, runs/lora with its scores and export."""
    assert "is whole" in run_blocks(ROOT / "README.md", place, environment)
    return place


def test_the_readmes_commands_lead_to_scores_and_a_model_folder(trained: Path) -> None:
    assert (trained / "runs/default/status.json").is_file()
    assert (trained / "runs/lora/report.html").stat().st_size > 10_000
    assert (trained / "runs/lora/export/model.safetensors").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "bash")], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, trained: Path, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "place"
    shutil.copytree(trained, folder, symlinks=True)
    run_blocks(page, folder, environment)


def test_the_yaml_files_of_the_pages_are_valid(place: Path) -> None:
    for name, text in titled().items():
        assert re.fullmatch(r"[a-z-]+\.yaml", name), f"a yaml block begins with its name: {text[:60]!r}"
        if "prompt:" in text:
            load_mapping(str(place / name))
        else:
            load(place / name)


def check_training(arguments: list[str]) -> None:
    """Raise for arguments that train/main.py would refuse."""
    options = parse(arguments)
    load(options.config, options.overrides, options.run)


def known_flags(program: str) -> set[str]:
    """The flags that a module or a script of the project explains in its --help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        if program.endswith(".py"):
            program = program.removesuffix(".py").replace("/", ".")
        spec = importlib.util.find_spec(program)
        assert spec is not None, f"there is no module {program}"
        is_package = spec.submodule_search_locations is not None
        importlib.import_module(f"{program}.__main__" if is_package else program).main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*", printed.getvalue()))


def check_flags(program: str, arguments: list[str]) -> None:
    """Fail for a flag that a program does not explain."""
    unknown = {word for word in arguments if re.fullmatch(r"--\S+", word)} - known_flags(program)
    assert unknown == set(), f"{program} has no {unknown}"


def check_started(script: str, arguments: list[str]) -> None:
    """Fail for what a launcher is told to start and cannot."""
    if script == "train/main.py":
        check_training(arguments)
    else:
        check_flags(script, arguments)


def check_command(line: str) -> None:
    """Raise for a command line that names a script, a flag or a setting there is not."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "srun":
        arguments = arguments[arguments.index("python") :]
        program = arguments.pop(0)
    if program == "make":
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in arguments)
    elif program == "deepspeed":
        options = importlib.import_module("deepspeed.launcher.runner").parse_args(arguments)
        check_started(options.user_script, options.user_args)
    elif program == "torchrun":
        options = importlib.import_module("torch.distributed.run").parse_args(arguments)
        check_started(options.training_script, options.training_script_args)
    elif program == "sbatch":
        script = next(place for place, word in enumerate(arguments) if word.endswith(".sbatch"))
        assert (ROOT / arguments[script]).is_file()
        assert all(word.startswith("-") for word in arguments[:script])
        if arguments[script] == "launch/train.sbatch":
            check_training(arguments[script + 1 :])
    elif program == "python" and arguments[0] == "train/main.py":
        check_training(arguments[1:])
    elif program == "python":
        name, rest = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
        check_flags(name, rest)
    elif program in SCRIPTS:
        check_flags(SCRIPTS[program], arguments)
    else:
        assert program in OTHER_PROGRAMS, f"nobody can say whether {program} is right"


@pytest.mark.parametrize("line", console_lines())
def test_a_command_that_is_not_run_here_is_known_to_its_program(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    check_command(line)


def test_every_setting_and_every_deepspeed_file_stands_in_the_page_of_settings() -> None:
    page = ROOT / "docs/config.md"
    text = page.read_text(encoding="utf-8")
    assert runpy.run_path(str(ROOT / "docs/make_config.py"))["page"](text) == text, "run: python docs/make_config.py"
    assert [path.name for path in (ROOT / "ds_configs").glob("*.json") if f"`{path.name}`" not in text] == []


def messages() -> list[str]:
    """Every text in the program, with … for what is filled in."""
    found = []
    for path in [*(ROOT / "data").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_page_of_errors_speaks_of_messages_that_the_program_has() -> None:
    table = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    quoted = [
        text for cell in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for text in re.findall("`(.*?)`", cell)
    ]
    known = messages()
    fixed = [[piece for piece in re.split("…|[A-Z]{3,}", text) if piece.strip(" '(),;")] for text in quoted]
    unknown = [
        text
        for text, pieces in zip(quoted, fixed, strict=True)
        if not any(re.search(".*".join(map(re.escape, pieces)), message, re.DOTALL) for message in known)
    ]
    assert len(quoted) > 40
    assert unknown == []
