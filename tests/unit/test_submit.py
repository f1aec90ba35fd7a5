"""The sbatch commands of a run's stages, and what differs by site."""

from pathlib import Path

import pytest

from train.config import load
from train.submit import SITE_DEFAULTS, SubmitError, check_slurm, parse, plan, read_site


def commands(*arguments: str, **site: str) -> list[list[str]]:
    """The command of each job, without a number to wait for."""
    options = parse(list(arguments))
    config = load(options.config, options.overrides, options.run)
    options.shards = config.data.shard_sets[0].path
    return [job.command() for job in plan(options, SITE_DEFAULTS | site, config)]


def test_a_training_gets_its_sites_shape_and_its_own_settings() -> None:
    (command,) = commands(
        "train", "--run", "a", "--nodes", "4", "--set", "stop.steps=3", GPU_PARTITION="gold", ACCOUNT="me"
    )
    assert command[:2] == ["sbatch", "--parsable"]
    wanted = {"--partition=gold", "--account=me", "--nodes=4", "--ntasks-per-node=8", "--signal=B:USR1@300"}
    assert wanted < set(command)
    assert command[command.index("launch/train.sbatch") + 3 :] == ["--run", "a", "--set", "stop.steps=3"]


def test_fewer_nodes_are_allowed_only_by_a_word() -> None:
    (fewer,) = commands("train", "--nodes", "4", "--min-nodes", "2")
    assert {"--nodes=2-4", "--mincpus=32", "--gpus-per-node=8"} < set(fewer)
    assert not any(word.startswith(("--ntasks", "--cpus-per-task")) for word in fewer)
    assert "--nodes=4" in commands("train", "--nodes", "4", "--min-nodes", "4")[0]
    with pytest.raises(SubmitError, match=r"RANKS_PER_NODE=1: --min-nodes takes a rank a GPU \(GPUS_PER_NODE=8\)"):
        commands("train", "--nodes", "4", "--min-nodes", "2", RANKS_PER_NODE="1")


def test_stages_come_in_their_order_and_shards_in_four_jobs() -> None:
    source = ("--preset", "burberry", "--source", "a.csv", "--parts", "3")
    found = commands("export", "shards", "evaluate", *source, "--run", "b", CPU_PARTITION="cpu", GPUS_PER_NODE="4")
    names = [next(word for word in command if word.endswith(".sbatch")) for command in found]
    assert names == ["launch/shards.sbatch"] * 4 + ["launch/evaluate.sbatch", "launch/export.sbatch"]
    assert [("--array=1-3" in command) for command in found] == [True, False, True, False, False, False]
    assert "--gpus-per-node=1" in found[4]
    assert ["--partition=cpu" in command for command in found] == [True, True, True, True, False, True]


def test_shards_without_a_catalogue_and_no_nodes_are_refused() -> None:
    for arguments in (["shards"], ["train", "--nodes", "0"]):
        with pytest.raises(SystemExit):
            parse(arguments)


def test_a_machine_without_slurm_is_told_of_the_hostfile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match=r"there is no Slurm here .* deepspeed --hostfile"):
        check_slurm(parse(["train"]), SITE_DEFAULTS)


def test_site_values_are_read_as_bash_reads_them(tmp_path: Path) -> None:
    (tmp_path / "site.env").write_text("GPU_PARTITION=gold # the new ones\nGPUS_PER_NODE=$((2 * 2))\n")
    site = read_site(tmp_path / "site.env")
    assert (site["GPU_PARTITION"], site["GPUS_PER_NODE"], site["RANKS_PER_NODE"]) == ("gold", "4", "8")
    for text, said in (("GPUS_PER_NODE=many\n", "expected a whole number"), ("if\n", "mend that line")):
        (tmp_path / "site.env").write_text(text)
        with pytest.raises(SubmitError, match=said):
            read_site(tmp_path / "site.env")
