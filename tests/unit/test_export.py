"""An exported folder answers as the run did, stands under the official names, and is whole or not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.factories.trained import ANSWER, FIELDS, PRODUCTS, QUESTION, make_run, make_shards, save
from train import export as export_module
from train.checkpoint import CheckpointError
from train.export import ExportError, export, export_adapter, main
from train.loading import ModelError, choose_checkpoint, load_run
from train.model import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from train.model.weights import official_shapes
from train.predict import predict_pictures


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    make_shards(folder / "shards")
    make_run(folder / "runs/full", folder / "shards", folder / "base")
    make_run(folder / "runs/lora", folder / "shards", folder / "base", lora=True)
    export(folder / "runs/full", folder / "out/full")
    export(folder / "runs/lora", folder / "out/lora")
    return folder


def logits(model: Phi3VForCausalLM, processor: Phi3VProcessor) -> torch.Tensor:
    text = f"<|user|>\n{QUESTION}<|end|><|assistant|>\nProduct: Wool"
    inputs = processor(text, images=[Image.new("RGB", (70, 40), "white")], return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("name", ["full", "lora"])
def test_outputs_equal_the_run_s(place: Path, name: str) -> None:
    run = load_run(place / "runs" / name)
    model = Phi3VForCausalLM.from_pretrained(place / "out" / name, dtype=torch.float32)
    processor = Phi3VProcessor.from_pretrained(place / "out" / name)
    assert torch.allclose(logits(run.model, run.processor), logits(model, processor), rtol=0, atol=1e-5)
    base = Phi3VForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    assert not torch.allclose(logits(base, processor), logits(model, processor), rtol=0, atol=0.1)


def test_merged_adapters_equal_attached_ones(place: Path) -> None:
    from train.loading import _copy_tensors
    from train.model.lora import add_lora

    run = load_run(place / "runs/lora")
    assert run.origin is not None
    lora = run.origin.config.tune.lora
    base = Phi3VForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    attached, _ = add_lora(base, rank=lora.rank, alpha=lora.alpha, parts=lora.parts)
    _copy_tensors(attached, run.origin.checkpoint)
    assert torch.allclose(logits(attached, run.processor), logits(run.model, run.processor), rtol=0, atol=1e-5)


def test_adapters_alone_load_in_plain_peft_and_can_be_trained_on(place: Path) -> None:
    from peft import PeftModel

    from train.model.lora import add_lora

    out = place / "out/adapter"
    assert main([str(place / "runs/lora"), str(out), "--adapter"]) == 0
    run = load_run(place / "runs/lora")
    assert run.origin is not None
    wanted = logits(run.model, run.processor)
    base = Phi3VForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, out)
    assert plain.peft_config["default"].base_model_name_or_path == str(place / "base")
    assert torch.allclose(logits(plain, run.processor), wanted, rtol=0, atol=1e-5)
    base = Phi3VForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    again, _ = add_lora(base, **run.origin.config.tune.lora.model_dump() | {"adapter": out})
    assert torch.allclose(logits(again, run.processor), wanted, rtol=0, atol=1e-5)


def test_a_run_in_full_has_no_adapters_to_export(place: Path) -> None:
    with pytest.raises(ModelError, match="no adapters"):
        export_adapter(place / "runs/full", place / "out/none")
    assert not (place / "out/none").exists()


@pytest.mark.parametrize("name", ["full", "lora"])
def test_names_and_shapes_are_the_official_ones(place: Path, name: str) -> None:
    found = {key: tuple(value.shape) for key, value in load_file(place / f"out/{name}/model.safetensors").items()}
    assert found == official_shapes(Phi3VConfig.from_pretrained(place / "out" / name))


def test_answers_end_by_themselves(place: Path) -> None:
    folder = place / "out/full"
    processor = Phi3VProcessor.from_pretrained(folder)
    model = Phi3VForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    inputs = processor(text, images=[Image.new("RGB", (70, 40), "white")], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=300)[0, inputs["input_ids"].shape[1] :]
    assert len(output) < 200
    assert processor.decode(output) == ANSWER.format(**PRODUCTS[1])


def test_generation_stops_at_four_tokens_and_pads_with_endoftext(place: Path) -> None:
    backend = Phi3VProcessor.from_pretrained(place / "out/full").tokenizer.backend_tokenizer
    settings = json.loads((place / "out/full/generation_config.json").read_text())
    stops = ["</s>", "<|endoftext|>", "<|assistant|>", "<|end|>"]
    assert settings["eos_token_id"] == [backend.token_to_id(name) for name in stops]
    assert settings["pad_token_id"] == backend.token_to_id("<|endoftext|>")


def test_the_folder_knows_its_question_template_and_fields(place: Path) -> None:
    loaded = load_run(place / "out/full")
    assert (loaded.task.question, loaded.task.answer_template, loaded.task.fields) == (QUESTION, ANSWER, FIELDS)
    assert loaded.processor.chat_template == load_run(place / "runs/full").processor.chat_template
    assert list(predict_pictures(loaded, [Image.new("RGB", (50, 50))])) == [ANSWER.format(**PRODUCTS[0])]


def test_num_crops_as_trained_goes_into_the_folder(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "runs/full", tmp_path / "run")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("num_crops: null", "num_crops: 2"))
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["num_crops"] == 2


def test_the_model_card_says_what_and_how_well(place: Path) -> None:
    card = (place / "out/lora/README.md").read_text()
    assert "LoRA, rank 8" in card
    assert "| test | 18 | 18 |" in card
    assert "Not evaluated" in card


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_weights_are_written_in_the_dtype_asked_for(place: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    export(place / "runs/lora", tmp_path / "out", dtype=name)
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {dtype}


def test_an_existing_folder_is_refused_or_replaced(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(place / "runs/full"), tmp_path / "out"
    assert main([run, str(out)]) == 0
    (out / "extra").touch()
    assert main([run, str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([run, str(out), "--overwrite"]) == 0
    assert not (out / "extra").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_never_overwritten(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="not an exported model"):
        export(place / "runs/full", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_export_cut_short_leaves_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(export_module, "model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export(place / "runs/full", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(place / "base"), str(tmp_path / "out")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err


def test_best_is_the_whole_checkpoint_of_the_lowest_loss(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "runs/full", tmp_path / "run")
    (only,) = (run / "checkpoints").iterdir()
    loaded = load_run(run)
    assert loaded.origin is not None
    later = save(run, loaded.model, loaded.origin.config, 90, 9.0)
    unmeasured = save(run, loaded.model, loaded.origin.config, 95, None)
    assert choose_checkpoint(run) == only
    assert choose_checkpoint(run, "newest") == unmeasured
    assert choose_checkpoint(run, later.name) == later
    (only / "manifest.json").unlink()
    assert choose_checkpoint(run) == later


def test_nan_in_a_checkpoint_is_said(place: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place / "runs/full", tmp_path / "run")
    loaded = load_run(run)
    assert loaded.origin is not None
    with torch.no_grad():
        loaded.model.model.norm.weight[3] = float("nan")
    save(run, loaded.model, loaded.origin.config, 90, None)
    with pytest.raises(CheckpointError, match=r"1 of 64 values of model\.norm\.weight are NaN"):
        export(run, tmp_path / "out", checkpoint="newest")
    assert not (tmp_path / "out").exists()
