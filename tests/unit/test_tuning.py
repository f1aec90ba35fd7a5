"""Ways of tuning that cannot be had are refused before anything is loaded; QLoRA runs where bitsandbytes is."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.small_models import pack, sample, small_folder, small_model
from tests.unit.test_plan import make_plan
from train.config import ConfigError, validate
from train.config_schema import Config
from train.engine import part_sizes
from train.model import Phi3VForCausalLM
from train.model.lora import add_lora
from train.tuning import check_calls, check_tuning, loading_options, prepare


def settings(**tune: Any) -> Config:
    return validate({"tune": tune}, "here")


def test_qlora_under_zero3_is_refused_with_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"ZeRO-3.*zero2\.json"):
        check_tuning(settings(method="qlora"), {"stage": 3})


def test_qlora_without_bitsandbytes_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ConfigError, match=r"bitsandbytes, which is not installed: pip install"):
        check_tuning(settings(method="qlora"), {"stage": 2})


LEAVES = {"stage": 3, "leaf_module": {"classes": ["Phi3DecoderLayer", "CLIPEncoderLayer"]}}


def test_layers_gathered_as_a_whole_are_refused_with_adapters_and_with_several_calls_of_the_tower() -> None:
    with pytest.raises(ConfigError, match=r"lora does not go with leaf_module of ds_configs/zero3\.json.*zero2\.json"):
        check_tuning(settings(method="lora"), LEAVES)
    check_tuning(settings(method="full"), LEAVES)
    plan = make_plan()  # each sample has three crops
    most = max(pack.crops for step in range(plan.steps_per_epoch) for pack in plan.batch(step).packs)
    enough, short = (validate({"model": {"crops_per_chunk": number}}, "here") for number in (most, most - 1))
    check_calls(enough, LEAVES, plan)
    check_calls(short, {"stage": 3}, plan)
    check_calls(short, {"stage": 3, "leaf_module": {"classes": ["Phi3DecoderLayer"]}}, plan)
    with pytest.raises(ConfigError, match=r"model\.crops_per_chunk: a pack has more crops than the"):
        check_calls(short, LEAVES, plan)


def test_an_adapter_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    model, _ = add_lora(small_model(), 4, 8)
    model.save_pretrained(tmp_path / "adapter")
    lora = {"rank": 4, "alpha": 8, "adapter": str(tmp_path / "adapter")}
    check_tuning(settings(method="lora", lora=lora), {"stage": 3})
    with pytest.raises(ConfigError, match=r"tune\.lora\.adapter: .*rank is 4, asked for 5"):
        check_tuning(settings(method="lora", lora=lora | {"rank": 5}), {"stage": 3})
    with pytest.raises(ConfigError, match=r"tune\.lora\.adapter: nowhere.*not there"):
        check_tuning(settings(method="lora", lora={"adapter": "nowhere"}), {"stage": 3})


def test_qlora_trains_adapters_beside_4_bit_layers(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes: pip install '.[qlora]'")
    config = settings(method="qlora", lora={"rank": 4, "alpha": 8, "parts": ["text_attention", "text_mlp", "vision"]})
    check_tuning(config, {"stage": 2})
    folder = small_folder(tmp_path / "small", spread=0.05)
    exact = Phi3VForCausalLM.from_pretrained(folder)
    loaded = Phi3VForCausalLM.from_pretrained(folder, dtype=torch.float32, **loading_options(config, torch.float32))
    sizes = part_sizes(loaded)
    assert {part: size.total for part, size in sizes.items()} == {
        part: size.total for part, size in part_sizes(exact).items()
    }
    batch = pack([sample(1, 4, [(2, 1)]), sample(2, 9)])
    wanted, found = exact(**batch).logits, loaded(**batch).logits
    assert 0 < (found - wanted).std() < 0.3 * wanted.std()
    model = prepare(loaded, config)
    packed = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert len(packed) == 8
    assert all(".layers." in name and "vision" not in name for name in packed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(**batch, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
