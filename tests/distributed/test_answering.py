"""Answers of a model partitioned over two ranks, whose prompts, pictures and answers differ in number and length."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.ranks import join, run_ranks, zero3_settings
from tests.factories.small_models import noise, pack, sample, small_folder
from train.answering import Answerer, Prompt
from train.model import Phi3VForCausalLM, Phi3VProcessor

# Some answers outgrow the short RoPE factors, at different steps.
SHORT_LENGTH = 53
TOKENS = 12
BATCH = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("answering") / "model", original_length=SHORT_LENGTH)


def prompts_of(answerer: Answerer) -> list[Prompt]:
    """With and without pictures; those of rank 0, but for the last."""
    asked: list[tuple[str, list[tuple[int, int]]]] = [
        ("<|image_1|>\nWhat is shown in this image?", [(40, 90)]),
        ("Which colour?", []),
        ("<|image_1|>\nA <|image_2|>?", [(30, 30), (90, 30)]),
        ("Chemise à rayures", []),
        ("<|image_1|>\nIs it red or is it blue, and what does it cost?", [(28, 28)]),
        ("Be brief.", []),
    ]
    return [
        answerer.prompt([{"role": "user", "content": text}], [noise(*size, seed=number) for size in sizes])
        for number, (text, sizes) in enumerate(asked)
    ]


def generated(answerer: Answerer, prompts: Sequence[Prompt], stops: list[int]) -> list[list[int]]:
    """The tokens of transformers' own generation, each prompt alone."""
    answers = []
    for prompt in prompts:
        pictures = {}
        if len(prompt.crops):
            sizes = torch.from_numpy(prompt.image_sizes)
            pictures = {"pixel_values": torch.from_numpy(prompt.crops), "image_sizes": sizes}
        ids = torch.from_numpy(prompt.input_ids)[None]
        output = answerer.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pictures,
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=stops or None,
            pad_token_id=0,
        )
        answers.append(output[0, ids.shape[1] :].tolist())
    return answers


@pytest.fixture(scope="module")
def asked(folder: Path) -> tuple[Answerer, list[Prompt], list[list[int]]]:
    """A model in one process, its prompts, and what transformers generates, with stops that end it at many lengths."""
    answerer = Answerer(Phi3VForCausalLM.from_pretrained(folder), Phi3VProcessor.from_pretrained(folder))
    answerer.max_new_tokens = TOKENS
    prompts = prompts_of(answerer)
    free = generated(answerer, prompts, [])
    answerer.stops = sorted({free[1][3], free[3][5], free[4][7]})
    tokens = generated(answerer, prompts, answerer.stops)
    assert len({len(one) for one in tokens}) >= 3
    lengths = [len(prompt.input_ids) for prompt in prompts]
    outgrown = [length <= SHORT_LENGTH < length + len(one) for length, one in zip(lengths, tokens, strict=True)]
    assert any(outgrown)
    assert not all(outgrown)
    return answerer, prompts, tokens


def texts(answerer: Answerer, tokens: list[list[int]]) -> list[str]:
    """What an answer of these tokens says."""
    kept = [one[:-1] if one[-1] in answerer.stops else one for one in tokens]
    return [answerer.processor.tokenizer.backend_tokenizer.decode(one, skip_special_tokens=False) for one in kept]


def test_a_batch_says_what_transformers_generates_for_each_alone(
    asked: tuple[Answerer, list[Prompt], list[list[int]]],
) -> None:
    answerer, prompts, tokens = asked
    answers = answerer.answer(prompts)
    assert [answer.text for answer in answers] == texts(answerer, tokens)
    assert [answer.ended for answer in answers] == [one[-1] in answerer.stops for one in tokens]


def test_two_ranks_say_what_one_process_says(
    asked: tuple[Answerer, list[Prompt], list[list[int]]], folder: Path, tmp_path: Path
) -> None:
    answerer, prompts, tokens = asked
    run_ranks(__file__, folder, tmp_path, json.dumps(answerer.stops))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    said = texts(answerer, tokens)
    # Rank 1 has one prompt, then none.
    assert ranks[0]["first"] == said[:5]
    assert ranks[1]["first"] == said[5:]
    assert ranks[0]["second"] == said[2:3]
    assert ranks[1]["second"] == []
    alone = [answerer.answer([prompt])[0].logprob for prompt in prompts]
    assert ranks[0]["logprobs"] + ranks[1]["logprobs"] == pytest.approx(alone, abs=1e-4)
    # Gathered once, the weights stay where they are until the last answer, and are let go of then.
    for rank in ranks:
        assert rank["gathered"] == ranks[0]["gathered"]
        assert rank["moved"] == []
        assert rank["left whole"] == []
    assert ranks[0]["gathered"] == said[2:3]
    # Training goes on as if nothing had been asked.
    for rank in ranks:
        assert rank["losses"][1:] == pytest.approx(rank["losses"][:1] * 2, rel=1e-6)
        assert rank["training"]


def main() -> None:
    """On each rank: answer between two steps that change no weight, and so must find the same loss."""
    from train.engine import Engine, load_model
    from train.zero_state import gathered

    folder, out, stops = sys.argv[1:]
    world = join()
    config, deepspeed = zero3_settings(stage3_param_persistence_threshold=1000)
    engine = Engine(load_model(config, Path(folder), deepspeed, world), config, deepspeed, world)
    model: Any = engine.deepspeed.module
    answerer = Answerer(model, Phi3VProcessor.from_pretrained(folder), max_new_tokens=TOKENS, world=world)
    answerer.stops = json.loads(stops)
    prompts = prompts_of(answerer)
    first = answerer.answer_all(prompts[:5] if world.first else prompts[5:], BATCH)
    losses = [step(engine)]
    second = answerer.answer_all(prompts[2:3] if world.first else [], BATCH)
    losses.append(step(engine))
    names = [name for name, one in model.named_parameters() if not one.ds_persist]
    assert names
    with gathered(model):
        places = {name: one.data_ptr() for name, one in model.named_parameters()}
        third = answerer.answer_all(prompts[2:3], BATCH)
        moved = [name for name, one in model.named_parameters() if one.data_ptr() != places[name]]
    whole = [name for name, one in model.named_parameters() if name in names and one.numel() == one.ds_numel]
    losses.append(step(engine))
    found = {
        "gathered": [answer.text for answer in third],
        "moved": moved,
        "left whole": whole,
        "first": [answer.text for answer in first],
        "second": [answer.text for answer in second],
        "logprobs": [answer.logprob for answer in first],
        "losses": losses,
        "training": model.training,
    }
    (Path(out) / f"{world.rank}.json").write_text(json.dumps(found))


def step(engine: Any) -> float:
    """A training step at a rate of 0; its loss."""
    batch = pack([sample(1, 5, [(1, 2)])])
    loss = engine.deepspeed(**batch, crop_chunks=1, label_chunks=1, loss_reduction="sum", return_logits=False).loss
    engine.deepspeed.backward(loss, scale_wrt_gas=False)
    engine.step(0.0)
    return float(loss)


if __name__ == "__main__":
    main()
