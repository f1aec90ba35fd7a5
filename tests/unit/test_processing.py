import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from data.manifest import CHAT_TEMPLATES
from tests.factories.small_models import noise, small_folder
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.crops import canvas_crops


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def processor(folder: Path) -> Phi3VProcessor:
    return Phi3VProcessor.from_pretrained(folder)


def test_pictures_leave_as_the_bytes_of_their_own_crops(processor: Phi3VProcessor) -> None:
    pictures = [noise(50, 30), noise(20, 90, seed=1)]
    inputs = processor("<|image_1|> and <|image_2|>", images=pictures, return_tensors="pt")
    wanted = np.concatenate([canvas_crops(picture, 4, 28)[0] for picture in pictures])
    assert inputs["pixel_values"].dtype == torch.uint8
    assert np.array_equal(inputs["pixel_values"].numpy(), wanted)
    assert inputs["image_sizes"].tolist() == [[56, 56], [112, 28]]
    # 2 × 2 tokens a crop: 4 · (crops + 1) + 1 + 2 · (rows + 1).
    assert [(inputs["input_ids"] == -number).sum().item() for number in (1, 2)] == [27, 31]


def test_the_models_inputs_are_the_processors_outputs(folder: Path, processor: Phi3VProcessor) -> None:
    model = Phi3VForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = ["<|image_1|>What?", "no picture", "<|image_2|><|image_1|>"]
    pictures = [[noise(30, 30)], [], [noise(60, 20), noise(20, 60)]]
    inputs = processor(prompts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
    logits = model(**inputs).logits
    for row, (prompt, own) in enumerate(zip(prompts, pictures, strict=True)):
        single = model(**processor(prompt, images=own or None, return_tensors="pt")).logits[0]
        assert (logits[row, -len(single) :] - single).abs().max() <= 1e-4


def test_a_flat_list_of_pictures_is_dealt_out_by_the_tags(processor: Phi3VProcessor) -> None:
    prompts = ["<|image_1|><|image_2|>", "<|image_1|>"]
    pictures = [noise(30, 30), noise(60, 20), noise(20, 60)]
    flat = processor(prompts, images=pictures, padding=True, return_tensors="pt")
    listed = processor(prompts, images=[pictures[:2], pictures[2:]], padding=True, return_tensors="pt")
    assert torch.equal(flat["input_ids"], listed["input_ids"])


def test_a_literal_image_token_stands_for_one_picture(processor: Phi3VProcessor) -> None:
    literal = processor("a <|image|> b", images=noise(30, 30), return_tensors="pt")
    tagged = processor("a <|image_1|> b", images=noise(30, 30), return_tensors="pt")
    assert torch.equal(literal["input_ids"], tagged["input_ids"])


def test_without_pictures_a_tag_is_text(processor: Phi3VProcessor) -> None:
    inputs = processor("a <|image_1|> b", return_tensors="pt")
    assert (inputs["input_ids"] >= 0).all()
    assert "pixel_values" not in inputs


@pytest.mark.parametrize("prompt", ["no tag", "<|image_2|>", "<|image_1|><|image_2|>"])
def test_tags_that_do_not_match_the_pictures_are_refused(processor: Phi3VProcessor, prompt: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        processor(prompt, images=noise(30, 30))


def test_prompts_of_unequal_length_need_padding(processor: Phi3VProcessor) -> None:
    with pytest.raises(ValueError, match="padding"):
        processor(["a", "a longer one"])


def test_decoding_leaves_picture_places_out(processor: Phi3VProcessor) -> None:
    ids = processor("<|user|>\n<|image_1|>Red shirt<|end|>", images=noise(30, 30), return_tensors="pt")["input_ids"]
    assert processor.batch_decode(ids)[0].split() == ["Red", "shirt"]


def test_the_chat_template_takes_lists_of_parts(processor: Phi3VProcessor) -> None:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(parts, add_generation_prompt=True)
    assert text == "<|user|>\n<|image_1|>\nWhat?<|end|>\n<|assistant|>\n"
    inputs = processor.apply_chat_template(
        parts, add_generation_prompt=True, tokenize=True, images=[noise(30, 30)], return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], processor(text, images=noise(30, 30), return_tensors="pt")["input_ids"])


def test_saving_and_loading_gives_the_same_files(processor: Phi3VProcessor, folder: Path, tmp_path: Path) -> None:
    for path in map(Path, processor.save_pretrained(tmp_path / "copy")):
        assert json.loads(path.read_bytes()) == json.loads((folder / path.name).read_bytes())


def test_a_changed_template_is_saved(folder: Path, tmp_path: Path) -> None:
    processor = Phi3VProcessor.from_pretrained(folder)
    processor.chat_template = CHAT_TEMPLATES["bare"]
    processor.save_pretrained(tmp_path)
    assert Phi3VProcessor.from_pretrained(tmp_path).chat_template == CHAT_TEMPLATES["bare"]


def test_the_callers_number_of_crops_wins(folder: Path) -> None:
    assert Phi3VProcessor.from_pretrained(folder, num_crops=1).num_crops == 1


def test_auto_processor_finds_it(folder: Path) -> None:
    assert isinstance(AutoProcessor.from_pretrained(folder), Phi3VProcessor)


def test_another_normalisation_is_refused(folder: Path, tmp_path: Path) -> None:
    Phi3VProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match="image_mean"):
        Phi3VProcessor.from_pretrained(tmp_path)
