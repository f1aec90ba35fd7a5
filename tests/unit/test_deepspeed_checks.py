"""DeepSpeed's JSON against DeepSpeed itself: every section's keys, old and removed ones, and who owns what."""

from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from train import deepspeed_config
from train.config import ConfigError, validate
from train.deepspeed_checks import check_sections, removed
from train.deepspeed_config import KNOWN, OWNED, UNUSED, key_problems


class Watched(dict):  # type: ignore[type-arg]
    """A configuration that notes which keys it is asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self


def test_every_top_level_key_that_deepspeed_reads_is_known_owned_or_refused() -> None:
    values = Watched({"train_batch_size": 1, "zero_optimization": {"stage": 3}})
    made = DeepSpeedConfig.__new__(DeepSpeedConfig)
    made._param_dict, made.world_size = values, 1
    made._initialize_params(values)
    top_level = {key for key in OWNED if "." not in key}
    assert values.asked == {*KNOWN, *top_level, *UNUSED}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"zero_optimization": {"stage3_prefetch_size": 1}}, ["did you mean 'stage3_prefetch_bucket_size'?"]),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "big"}}, ["reduce_bucket_size is 'big'"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memry": True}}},
            ["zero_optimization.offload_optimizer.pin_memry", "did you mean 'pin_memory'?"],
        ),
        ({"zero_optimization": {"cpu_offload": True}}, ["an old key; write 'offload_optimizer'"]),
        (
            {"zero_optimization": {"stage3_gather_fp16_weights_on_model_save": True}},
            ["an old key; write 'gather_16bit_weights_on_model_save'"],
        ),
        ({"zero_optimization": {"prefetch_bucket_size": 1}}, ["write 'stage3_prefetch_bucket_size'"]),
        ({"zero_optimization": {"mics_shard_size": 2}}, ["MiCS ZeRO-3 sharding has been removed"]),
        ({"aio": {"queue_dept": 1}}, ["unknown key 'aio.queue_dept'", "did you mean 'queue_depth'?"]),
        ({"flops_profiler": {"enable": True}}, ["did you mean 'enabled'?"]),
        ({"data_types": {"grad_acc_dtype": "fp32"}}, ["did you mean 'grad_accum_dtype'?"]),
        ({"tensorboard": {"output": "x"}}, ["did you mean 'output_path'?"]),
        ({"comms_logger": True}, ["comms_logger is True: expected an object"]),
        ({"aio": {"x_y": 1}, "zero_optimization": {"stagee": 3}}, ["aio.x_y", "did you mean 'stage'?"]),
    ],
)
def test_what_is_wrong_inside_a_section_is_named_with_what_to_write(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sections(values, "mine.json")
    for word in words:
        assert word in str(caught.value)
    assert all(line.startswith("mine.json: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    "file", sorted(deepspeed_config.locate("ds_configs").glob("*.json")), ids=lambda file: file.stem
)
def test_the_projects_files_pass(file: Any) -> None:
    check_sections(deepspeed_config.read(validate({"deepspeed": str(file)}, "test")), str(file))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("amp", {"enabled": True}, "is of an older DeepSpeed: NVIDIA Apex AMP"),
        ("sparse_attention", {}, "is of an older DeepSpeed"),
        ("bfloat16", {"enabled": True}, "by 'model.precision' of the YAML"),
        ("data_types", {"param_dtype": "bf16"}, "'data_types.param_dtype' is set there"),
        ("activation_checkpointing", {"cpu_checkpointing": True}, "model.checkpoint_offload"),
        ("pipeline", {}, "not for this trainer"),
        ("zero_optimisation", {}, "pass over in silence; did you mean 'zero_optimization'?"),
    ],
)
def test_a_top_level_key_is_answered_by_what_it_is(key: str, value: Any, words: str) -> None:
    assert words in " ".join(key_problems(key, value))
    assert removed("zero_optimisation") is None
