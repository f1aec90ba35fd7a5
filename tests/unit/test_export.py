"""An exported folder answers as the run did, stands under the official names, and is whole or not there."""

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.conversation import Conversation
from data.images import open_picture
from tests.factories.trained import ANSWER, FIELDS, PRODUCTS, QUESTION, make_run, make_shards, save
from train import export as export_module
from train.checkpoint import CheckpointError
from train.config import dump
from train.config import load as load_config
from train.export import ExportError, check_export, export, export_adapter, main
from train.loading import ModelError, choose_checkpoint, load_run
from train.model import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from train.model.standalone import model_code
from train.model.weights import official_shapes
from train.predict import predict_pictures
from train.score.split import Split


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
    assert "| licence | CC0-1.0 |" in card
    assert "| origin | drawn for a test |" in card


def test_each_kind_of_adapter_merges_as_peft_does(place: Path, tmp_path: Path) -> None:
    from train.model.lora import add_lora

    for kind in ("rslora", "dora"):
        run = shutil.copytree(place / "runs/lora", tmp_path / kind)
        shutil.rmtree(run / "checkpoints")
        config = load_config(run / "config.yaml", [f"tune.lora.{kind}=true"])
        (run / "config.yaml").write_text(dump(config))
        base = Phi3VForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
        torch.manual_seed(0)
        adapted, _ = add_lora(base, **config.tune.lora.model_dump())
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.data += 0.02 * torch.randn_like(parameter)
        save(run, adapted, config, 5, None)
        export(run, tmp_path / f"out-{kind}")
        wanted, found = load_run(run), load_run(tmp_path / f"out-{kind}")
        merged = logits(wanted.model, wanted.processor)
        assert torch.allclose(logits(found.model, found.processor), merged, rtol=0, atol=1e-5)
        assert not torch.allclose(logits(load_run(place / "base").model, wanted.processor), merged, rtol=0, atol=0.01)


def test_split_adapters_are_the_rows_of_the_fused_ones(place: Path, tmp_path: Path) -> None:
    run = str(place / "runs/lora")
    assert main([run, str(tmp_path / "fused"), "--adapter"]) == 0
    assert main([run, str(tmp_path / "split"), "--adapter", "--split-fused"]) == 0
    fused, split = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fused", "split"))

    def change(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
        name = f"base_model.model.model.layers.1.{layer}"
        return tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]

    for whole, parts in (
        ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        joined = torch.cat([change(split, part) for part in parts])
        assert torch.allclose(joined, change(fused, whole), rtol=0, atol=1e-7)
    assert not any("qkv_proj" in name or "gate_up_proj" in name for name in split)
    targets = json.loads((tmp_path / "split/adapter_config.json").read_text())["target_modules"]
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in targets} == names


def test_large_models_are_written_in_several_files(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.merging.SHARD_BYTES", 200_000)
    export(place / "runs/full", tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    whole, parts = load_run(place / "out/full"), load_run(tmp_path / "out")
    assert torch.equal(logits(whole.model, whole.processor), logits(parts.model, parts.processor))


def test_every_file_has_its_hash(place: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=place / "out/lora", check=False).returncode == 0
    listed = {line.split("  ")[1] for line in (place / "out/lora/SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in (place / "out/lora").iterdir()} - {"SHA256SUMS"}


def test_check_compares_the_logits_of_run_and_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(place / "runs/lora"), tmp_path / "out"
    assert main([run, str(out), "--check"]) == 0
    assert "its logits are the run's" in capsys.readouterr().out
    weights = load_file(out / "model.safetensors")
    weights["model.norm.weight"] += 0.01
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="its logits differ"):
        check_export(place / "runs/lora", out)


# Another environment's view: what this one has installed, and neither the checkout nor a link to it.
ALONE = """
import importlib.util, json, sys
sys.path = [entry for entry in sys.path if "python3" in entry]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("train") is None and importlib.util.find_spec("data") is None
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor
folder, question, adapter, base = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
picture = Image.new("RGB", (70, 40), "white")

def logits(model, text):
    with torch.inference_mode():
        return model.eval()(**processor(text, images=[picture], return_tensors="pt")).logits[0, -1].tolist()

model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
text = processor.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
inputs = processor(text, images=[picture], return_tensors="pt")
ids = model.generate(**inputs, max_length=4096)[0, inputs["input_ids"].shape[1]:]
found = {"answer": processor.decode(ids), "ids": inputs["input_ids"][0].tolist(), "module": type(model).__module__}
found["logits"] = logits(model, text)
if adapter:
    from peft import PeftModel
    plain = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, dtype=torch.float32)
    found["adapted"] = logits(PeftModel.from_pretrained(plain, adapter), text)
print(json.dumps(found))
"""


def loaded_alone(python: Path, place: Path, scratch: Path, with_peft: bool = True) -> dict[str, Any]:
    """What the exported folder and the adapter say in an interpreter that knows nothing of this project."""
    base, adapter = scratch / "plain", scratch / "adapter"
    if with_peft:
        shutil.copytree(place / "out/lora", base)
        shutil.copy(place / "base/model.safetensors", base)
        export_adapter(place / "runs/lora", adapter)
    done = subprocess.run(
        [python, "-I", "-c", ALONE, place / "out/lora", QUESTION, adapter if with_peft else "", base],
        cwd=scratch,
        env={**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_alone(found: dict[str, Any], place: Path) -> None:
    assert found["module"].startswith("transformers_modules.")
    assert found["answer"] == ANSWER.format(**PRODUCTS[1])
    run = load_run(place / "runs/lora")
    text = run.processor.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    inputs = run.processor(text, images=[Image.new("RGB", (70, 40), "white")], return_tensors="pt")
    with torch.inference_mode():
        wanted = run.model(**inputs).logits[0, -1]
    assert found["ids"] == inputs["input_ids"][0].tolist()
    for name in ("logits", "adapted") if "adapted" in found else ("logits",):
        assert torch.allclose(torch.tensor(found[name]), wanted, rtol=0, atol=1e-5), name


def test_the_folder_stands_alone(place: Path, tmp_path: Path) -> None:
    found = loaded_alone(Path(sys.executable), place, tmp_path)
    assert "adapted" in found
    check_alone(found, place)


def test_the_code_beside_the_weights_needs_only_what_transformers_brings() -> None:
    # Pillow, transformers and torch with what they require.
    brought = {"PIL", "transformers", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "jinja2"}
    brought |= sys.stdlib_module_names
    found = set()
    for text in model_code().values():
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    assert found <= brought


@pytest.mark.soak
def test_the_folder_stands_alone_in_an_environment_of_its_own(root: Path, place: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"

    def install(*packages: str) -> set[str]:
        command = [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt", *packages]
        subprocess.run(command, check=True, timeout=1500)
        listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], stdout=subprocess.PIPE, check=True)
        return {package["name"] for package in json.loads(listed.stdout)}

    there = install("torch", "transformers", "pillow")
    print(", ".join(sorted(there)))
    assert not there & {"peft", "accelerate", "deepspeed", "torchvision", "phi3-vision-tuner"}
    check_alone(loaded_alone(python, place, tmp_path, with_peft=False), place)
    install("peft")
    found = loaded_alone(python, place, tmp_path)
    assert "adapted" in found
    check_alone(found, place)


def test_the_exported_template_gives_the_ids_of_training(place: Path) -> None:
    loaded = load_run(place / "out/full")
    split = Split(place / "shards")
    # What a product's text holds stays text in training; the published processor would read <|end|> as the token.
    sample, pictures = split.read(0)
    assert "<|end|>" not in sample.messages[1]["content"]
    text = loaded.processor.apply_chat_template(list(sample.messages))
    inputs = loaded.processor(text, images=[open_picture(pictures[0])], return_tensors="np")
    conversation = Conversation(loaded.processor.tokenizer.backend_tokenizer, split.manifest.chat_template["template"])
    ids, _ = conversation.encode(sample.messages, [int((inputs["input_ids"] == -1).sum())])
    assert inputs["input_ids"][0].tolist() == ids.tolist()


def test_a_folder_loads_only_once_it_is_whole(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def rename(self: Path, target: Path) -> Path:
        for folder in [one for one in tmp_path.iterdir() if one.is_dir()]:
            try:
                Phi3VForCausalLM.from_pretrained(folder)
                seen.append(f"{folder.name} loads before {target.name} is there")
            except (ValueError, OSError):
                continue
        os.rename(self, target)
        return target

    monkeypatch.setattr(Path, "rename", rename)
    export(place / "runs/full", tmp_path / "out")
    monkeypatch.undo()
    assert seen == []
    (tmp_path / "out/config.json").rename(tmp_path / "out/config.json.part")
    (tmp_path / ".out-killed.part").mkdir()
    export(place / "runs/full", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_run(tmp_path / "out").task.question == QUESTION


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


def test_a_place_that_cannot_be_written_is_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert main([str(place / "runs/full"), str(tmp_path / "file/out")]) == 2
    assert "cannot be written" in capsys.readouterr().err

    def fail(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "model_card", fail)
    assert main([str(place / "runs/full"), str(tmp_path / "out")]) == 2
    assert "no room is left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
