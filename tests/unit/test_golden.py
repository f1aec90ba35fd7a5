"""The published model's own numbers; what is compared stands in tests/factories/goldens.py."""

import re
from pathlib import Path

import pytest

from data.conversation import IMAGE_TAG, Conversation
from data.manifest import CHAT_TEMPLATES
from tests.factories.goldens import (
    BOUNDS,
    CASES,
    Goldens,
    case_differences,
    changed_tensors,
    pixel_differences,
    rotary_differences,
    unrolled,
    wrong_ids,
    wrong_sizes,
)
from train.model import Phi3VForCausalLM


@pytest.fixture(scope="module")
def goldens(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Goldens:
    return Goldens(material, tmp_path_factory.mktemp("goldens") / "tiny")


def beyond(differences: dict[str, float]) -> dict[str, float]:
    """Those that are larger than allowed."""
    return {what: off for what, off in differences.items() if not off <= BOUNDS[what]}


def test_pixels_are_the_published_processors(goldens: Goldens) -> None:
    found = dict(pixel_differences(goldens))
    assert len(found) == 42
    assert {name: off for name, off in found.items() if beyond(off)} == {}


def test_canvases_and_token_counts_are_the_published_processors(goldens: Goldens) -> None:
    found = list(wrong_sizes(goldens))
    assert len(found) == 1500
    assert [size for size, wrong in found if wrong] == []


def test_ids_are_the_published_processors(goldens: Goldens) -> None:
    found = dict(wrong_ids(goldens))
    assert len(found) == 35
    assert [name for name, wrong in found.items() if wrong] == []


def as_messages(text: str) -> tuple[str, list[dict[str, str]], bool] | None:
    """The template, messages and generation prompt that render to a text, where there are any."""
    for name, end in (("phi3v", "\n"), ("bare", "")):
        turn = rf"<\|(user|system|assistant)\|>\n(.*?)<\|end\|>{end}"
        found = re.fullmatch(rf"((?:{turn})+)(<\|assistant\|>\n)?", text, re.DOTALL)
        if found:
            turns = re.findall(turn, found[1], re.DOTALL)
            return name, [{"role": role, "content": content} for role, content in turns], bool(found[4])
    return None


def test_messages_encode_to_the_published_ids(goldens: Goldens) -> None:
    tokenizer = (goldens.folder / "tokenizer.json").read_text()
    conversations = {name: Conversation(tokenizer, template) for name, template in CHAT_TEMPLATES.items()}
    compared = 0
    for row in goldens.rows("tokenize"):
        parsed = as_messages(row["text"])
        if row.get("raises") or parsed is None:
            continue
        name, messages, asks = parsed
        wanted = unrolled(row["input_ids"])
        used = [int(number) for number in IMAGE_TAG.findall(row["text"])]
        counts = [wanted.count(-number) // used.count(number) for number in range(1, len(row["images"]) + 1)]
        conversation = conversations[name]
        found = conversation.prompt(messages, counts) if asks else conversation.encode(messages, counts)[0]
        assert found.tolist() == wanted, row["name"]
        compared += 1
    assert compared >= 16


def test_rotary_tables_are_the_published_ones(goldens: Goldens) -> None:
    found = dict(rotary_differences(goldens))
    assert len(found) == 8
    assert {name: off for name, off in found.items() if not off <= BOUNDS["rotary tables"]} == {}


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, goldens: Goldens) -> Phi3VForCausalLM:
    return goldens.model(request.param)


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_are_the_published_models(
    goldens: Goldens, model: Phi3VForCausalLM, name: str
) -> None:
    assert beyond(case_differences(goldens, model, name)) == {}


def test_loading_and_saving_the_golden_checkpoint_keeps_every_byte(goldens: Goldens) -> None:
    found = dict(changed_tensors(goldens))
    assert len(found) > 50
    assert [name for name, changed in found.items() if changed] == []


def test_the_published_files_are_written_back(goldens: Goldens, tmp_path: Path) -> None:
    goldens.processors[16].save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (goldens.folder / name).read_bytes()


def test_the_page_of_the_model_has_the_table_of_what_is_compared(root: Path) -> None:
    page = (root / "docs/model.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    table = [row for row in rows if row[0] in BOUNDS]
    assert {row[0] for row in table} == set(BOUNDS)
    assert [row for row in table if float(row[3]) != BOUNDS[row[0]] or not float(row[2]) <= BOUNDS[row[0]]] == []
