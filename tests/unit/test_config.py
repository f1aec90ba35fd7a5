"""Reading settings: defaults, overrides, and errors that name the key and the nearest right one."""

import json
from pathlib import Path

import pytest
import yaml

from train import config, deepspeed_config
from train.config import ConfigError, differences, dump, load, may_change, validate

CONFIGS = Path(config.__file__).parent / "configs"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_is_valid_with_its_deepspeed_file(path: Path) -> None:
    loaded = load(path)
    assert loaded.run.name == path.stem
    composed = deepspeed_config.compose(loaded, deepspeed_config.read(loaded), world=3)
    assert composed["train_batch_size"] == 3
    assert composed["zero_optimization"]["stage"] in (2, 3)


@pytest.mark.parametrize("path", sorted(Path("ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_deepspeed_file_of_the_project_is_valid(path: Path) -> None:
    deepspeed_config.read(validate({"deepspeed": str(path)}, "test"))


def test_overrides_are_put_on_top_and_read_as_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 1.0e-3}\n")
    loaded = load(path, ["optim.lr=5e-6", "tune.freeze=[vision]", "stop.steps=7", "model.num_crops=null"], "name")
    assert loaded.optim.lr == 5e-6
    assert loaded.tune.freeze == ["vision"]
    assert loaded.stop.steps == 7
    assert loaded.model.num_crops is None
    assert loaded.run.name == "name"


def test_numbers_in_scientific_notation_need_no_point(tmp_path: Path) -> None:
    assert load(write(tmp_path, "optim: {lr: 1e-3, eps: 1E-8}\n")).optim.lr == 1e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {learning_rate: 1.0}", ["mine.yaml", "optim.learning_rate", "did you mean 'optim.lr'?"]),
        ("batch: {micro_batch_size: 2}", ["did you mean 'batch.global_batch_packs'?"]),
        ("model: {bf16: true}", ["did you mean 'model.precision'?"]),
        ("optim:\n  lr: 1.0\n  lr: 2.0\n", ["mine.yaml:3:3", "'lr' stands twice"]),
        ("optim: {lr: .inf}", ["optim.lr is inf"]),
        ("data: {shards: []}", ["data.shards is []: List should have at least 1 item"]),
        ("optim: {warm_up_steps: 1}", ["did you mean 'optim.warmup_steps'?"]),
        ("optimizer: {lr: 1.0}", ["did you mean 'optim'?"]),
        ("data: {pack_lenght: 3}", ["did you mean 'data.pack_length'?"]),
        ("optim: {lr: fast}", ["optim.lr", "'fast'"]),
        ("batch: {global_batch_packs: 0}", ["batch.global_batch_packs", "greater than 0"]),
        ("model: {attention: fast}", ["model.attention", "'flash'"]),
        ("stop: {epochs: null}", ["stop.epochs, stop.steps or stop.tokens"]),
        ("stop: {hours: 2.0}", ["stop.hours and stop.patience may end a run before"]),
        ("stop: {steps: 9, patience: 2}", ["stop.patience", "evaluate.every_steps"]),
        ("tune: {method: lora, freeze: [vision]}", ["tune.freeze"]),
        (
            "model: {checkpoint_offload: true, checkpoint_decoder: false, checkpoint_vision: false}",
            ["model.checkpoint_offload"],
        ),
        ("optim: {loss_scale: 8.0}", ["optim.loss_scale goes with model.precision: fp16"]),
        ("run: {name: ../elsewhere}", ["run.name"]),
        ("optim: {lr: 1.0", ["mine.yaml:1", "not YAML"]),
        ("just text", ["expected sections"]),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_what_other_trainers_say_leads_to_keys_that_there_are() -> None:
    assert set(config.ELSEWHERE.values()) <= set(config.known_keys())


def test_a_key_that_stands_twice_in_a_deepspeed_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "twice.json"
    file.write_text('{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 2}}')
    with pytest.raises(ConfigError, match="'zero_optimization' stands twice"):
        deepspeed_config.read(load(write(tmp_path, f"deepspeed: {file}\n")))


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "optim: {lrr: 1.0}\ndata: {shard: x}\n"))
    assert "optim.lrr" in str(caught.value)
    assert "data.shard" in str(caught.value)


def test_a_file_extends_another_and_says_where_each_value_is_from(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lr: 1e-3, eps: 1e-7}\nstop: {steps: 9}\n")
    path = write(tmp_path, "extends: base.yaml\noptim: {lr: 2e-3}\n")
    loaded = load(path, ["stop.steps=7"])
    assert (loaded.optim.lr, loaded.optim.eps, loaded.stop.steps) == (2e-3, 1e-7, 7)
    assert config.origins(path, ["stop.steps=7"]) == {
        "optim.lr": str(path),
        "optim.eps": str(tmp_path / "base.yaml"),
        "stop.steps": "--set",
    }


def test_what_is_wrong_with_extending_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optim: {lrr: 1e-3}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown key 'optim\.lrr'"):
        load(write(tmp_path, "extends: base.yaml"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: extends .*none\.yaml: no such configuration file"):
        load(write(tmp_path, "extends: none.yaml"))
    with pytest.raises(ConfigError, match=r"mine\.yaml, which extends it again"):
        load(write(tmp_path, "extends: mine.yaml"))
    with pytest.raises(ConfigError, match=r"extends is \['a'\]"):
        load(write(tmp_path, "extends: [a]"))


def test_a_wrong_override_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(path, ["optim.lr"])
    with pytest.raises(ConfigError, match=r"did you mean 'optim\.lr'"):
        load(path, ["optim.lrr=1"])
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.lr\.x'"):
        load(write(tmp_path, "optim: {lr: 1.0}"), ["optim.lr.x=1"])


def test_a_file_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"train/configs/default\.yaml"):
        load("none.yaml")


def test_the_written_configuration_reads_as_the_same(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "optim: {lr: 1.0e-05, betas: [0.8, 0.9]}"))
    assert validate(yaml.safe_load(dump(loaded)), "again") == loaded


def test_differences_name_dotted_keys_with_old_and_new() -> None:
    old = {"optim": {"lr": 1, "betas": [1, 2]}, "gone": 3}
    new = {"optim": {"lr": 2, "betas": [1, 2]}, "come": 4}
    assert differences(old, new) == {"optim.lr": (1, 2), "gone": (3, None), "come": (None, 4)}


def test_a_run_may_go_on_with_another_end_and_other_logs_but_not_with_another_rate() -> None:
    assert all(map(may_change, ("stop.steps", "logging.every_steps", "wandb.mode", "checkpoint.keep_last")))
    assert not any(map(may_change, ("optim.lr", "data.shards", "run.seed", "deepspeed", "stopped.x")))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gradient_clipping": 1.0}, ["gradient_clipping", "optim.grad_clip"]),
        ({"bf16": {"enabled": True}}, ["bf16", "model.precision"]),
        ({"train_batch_size": 8}, ["train_batch_size", "batch.global_batch_packs"]),
        ({"zero_optimisation": {"stage": 3}}, ["did you mean 'zero_optimization'?"]),
        ({"zero_optimization": {"stage": 1}}, ["zero_optimization.stage is 1"]),
        ({}, ["zero_optimization.stage is None"]),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, ["offload_param", "nvme"]),
    ],
)
def test_a_deepspeed_file_that_cannot_be_used_is_named(tmp_path: Path, values: dict, words: list[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}} | values if values else {}))
    with pytest.raises(ConfigError) as caught:
        deepspeed_config.read(validate({"deepspeed": str(path)}, "test"))
    for word in words:
        assert word in str(caught.value)


def test_fp16_and_its_scale_are_told_to_deepspeed_by_the_settings() -> None:
    values = {"model": {"precision": "fp16"}, "optim": {"loss_scale_power": 12, "loss_scale_window": 50}}
    composed = deepspeed_config.compose(validate(values, "test"), {}, world=2)
    found = {"enabled": True, "loss_scale": 0, "initial_scale_power": 12, "loss_scale_window": 50}
    assert composed["fp16"] == found
    assert composed["bf16"] == {"enabled": False}
    values["optim"]["loss_scale"] = 512.0
    assert deepspeed_config.compose(validate(values, "test"), {}, world=2)["fp16"]["loss_scale"] == 512.0


def test_auto_counts_as_not_named(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        '{"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "gradient_clipping": "auto",'
        ' "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}'
    )
    assert deepspeed_config.read(validate({"deepspeed": str(path)}, "test")) == {"zero_optimization": {"stage": 3}}
