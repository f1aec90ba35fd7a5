import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from data.manifest import CHAT_TEMPLATES
from tests.factories.small_models import TEXTS, noise, small_tokenizer
from tests.factories.small_shards import small_shards
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.tiny import PRESETS, main
from train.model.tokens import special_tokens, train_tokenizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shards(tmp_path_factory.mktemp("shards")).folder


def test_the_folder_is_a_whole_model(shards: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "tiny"), "--shards", str(shards), "--vocab", "400"]) == 0
    model = Phi3VForCausalLM.from_pretrained(tmp_path / "tiny")
    processor = Phi3VProcessor.from_pretrained(tmp_path / "tiny")
    assert processor.crop_size == model.config.crop_size == PRESETS["quickstart"].crop_size
    assert processor.tokens_per_side == model.config.tokens_per_side == 4
    inputs = processor("<|image_1|>What?", images=noise(30, 40), return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] <= inputs["input_ids"].shape[1] + 3
    stops = [
        processor.tokenizer.convert_tokens_to_ids(name)
        for name in ("</s>", "<|endoftext|>", "<|assistant|>", "<|end|>")
    ]
    assert model.generation_config.eos_token_id == stops


def test_the_same_seed_gives_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([str(tmp_path / name), "--shards", str(shards), "--seed", seed, "--vocab", "400"]) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    other = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    assert [name for name in files if files[name] != other[name]] == ["model.safetensors"]


def test_sizes_can_be_given_one_by_one(shards: Path, tmp_path: Path) -> None:
    flags = ["--hidden", "64", "--layers", "1", "--vision-hidden", "32", "--vision-layers", "2", "--num-crops", "4"]
    flags += ["--crop-size", "56", "--patch-size", "14", "--vocab", "400"]
    assert main([str(tmp_path / "tiny"), "--shards", str(shards), *flags]) == 0
    config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (64, 1)
    assert config["img_processor"]["vision_config"]["image_size"] == 56
    assert Phi3VProcessor.from_pretrained(tmp_path / "tiny").num_crops == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden", "100"], "multiple of 32"),
        (["--crop-size", "98"], "even number"),
        (["--vocab", "200"], "too small"),
    ],
)
def test_sizes_that_make_no_model_are_told_in_a_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(tmp_path / "tiny"), "--shards", str(shards), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_in_it_is_left_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path), "--shards", str(shards)]) == 2
    assert "already holds files" in capsys.readouterr().err


def test_shards_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "tiny"), "--shards", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_digits_are_pieces_of_their_own() -> None:
    tokenizer = Tokenizer.from_str(json.dumps(train_tokenizer([*TEXTS, *["1950.0 1950 195"] * 50], 400)))
    pieces = tokenizer.encode("Price: 1950.0", add_special_tokens=False).tokens
    assert pieces[-6:] == ["1", "9", "5", "0", ".", "0"]


def test_any_text_comes_back_from_its_ids() -> None:
    tokenizer = Tokenizer.from_str(json.dumps(small_tokenizer()))
    for text in ("Red shirt", "日本語 🙂 ελληνικά\n\ttab", "naïve café ﬁ"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
        assert 0 not in tokenizer.encode(text).ids


def test_special_tokens_stand_behind_the_pieces_in_the_published_order(material: Path) -> None:
    published = json.loads((material / "phi3v" / "tokenizer" / "tokenizer.json").read_text())
    flags = [{key: value for key, value in token.items() if key != "id"} for token in published["added_tokens"]]
    made = small_tokenizer()
    assert [{key: value for key, value in token.items() if key != "id"} for token in made["added_tokens"]] == flags
    assert [token["content"] for token in published["added_tokens"][3:]] == special_tokens()
    ids = [token["id"] for token in made["added_tokens"]]
    assert ids == [0, 1, 2, *range(len(made["model"]["vocab"]), len(made["model"]["vocab"]) + 45)]
    assert {key: made[key] for key in ("normalizer", "decoder", "post_processor", "pre_tokenizer")} == {
        key: published[key] for key in ("normalizer", "decoder", "post_processor", "pre_tokenizer")
    }


def test_the_template_is_that_of_the_shards(shards: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "tiny"), "--shards", str(shards), "--vocab", "400"]) == 0
    template = json.loads((shards / "manifest.json").read_text())["chat_template"]["template"]
    assert template in CHAT_TEMPLATES.values()
    assert Phi3VProcessor.from_pretrained(tmp_path / "tiny").chat_template == template


def test_making_a_model_leaves_the_random_generator_alone(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    assert main([str(tmp_path / "tiny"), "--shards", str(shards), "--vocab", "400"]) == 0
    assert torch.equal(torch.rand(3), wanted)
