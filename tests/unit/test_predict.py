"""Predictions: the training text back exactly, the same for any batch, in order, and clear words where it cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.conversation import Conversation
from data.images import open_picture
from data.manifest import Manifest
from tests.factories.trained import ANSWER, PRODUCTS, QUESTION, example, make_run, make_shards
from train.answering import Answerer, stop_ids
from train.loading import Loaded, load_run
from train.predict import main, predict_pictures, predict_split
from train.questions import CONTROLS, SplitQuestions
from train.score.fields import read_predictions
from train.score.split import Split, SplitError, exchanged_pictures


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    make_shards(folder / "shards")
    make_run(folder / "runs/one", folder / "shards", folder / "base")
    return folder


@pytest.fixture(scope="module")
def loaded(place: Path) -> Loaded:
    return load_run(place / "runs/one")


@pytest.fixture(scope="module")
def split(place: Path) -> Split:
    return Split(place / "shards")


def picture_file(folder: Path, number: int) -> Path:
    path = folder / f"picture-{number}.png"
    path.write_bytes(example("x", number)[1][0].data)
    return path


def test_answers_are_the_training_text_exactly_and_in_order(loaded: Loaded, split: Split) -> None:
    predictions = predict_split(loaded, split)
    assert [prediction.key for prediction in predictions] == split.index.keys
    for number, prediction in enumerate(predictions):
        product = PRODUCTS[number % 3 == 0]
        assert prediction.answer == ANSWER.format(**product)
        assert prediction.fields == product


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_of_any_size_give_the_same_predictions(loaded: Loaded, split: Split, batch_size: int) -> None:
    whole, parts = predict_split(loaded, split), predict_split(loaded, split, batch_size=batch_size)
    assert [one.answer for one in whole] == [one.answer for one in parts]
    assert np.allclose([one.logprob for one in whole], [one.logprob for one in parts], rtol=0, atol=1e-3)


def test_logprob_is_that_of_the_answer_with_its_stop_token(loaded: Loaded, split: Split) -> None:
    prediction = predict_split(loaded, split, limit=1)[0]
    sample, pictures = split.read(0)
    answerer = Answerer(loaded.model, loaded.processor)
    prompt = answerer.prompt(sample.messages[:1], [open_picture(pictures[0])])
    conversation = Conversation(loaded.processor.tokenizer.backend_tokenizer, answerer._conversation.template)
    image_tokens = int((prompt.input_ids == -1).sum())
    messages = (sample.messages[0], {"role": "assistant", "content": prediction.answer})
    ids, labels = conversation.encode(messages, [image_tokens])
    with torch.inference_mode():
        logits = loaded.model(
            input_ids=torch.from_numpy(ids)[None],
            pixel_values=torch.from_numpy(prompt.crops),
            image_sizes=torch.from_numpy(prompt.image_sizes),
        ).logits[0]
    places = np.flatnonzero(labels >= 0)
    logprobs = torch.log_softmax(logits, dim=-1)[places - 1, labels[places]]
    assert float(logprobs.sum()) == pytest.approx(prediction.logprob, abs=1e-3)


def test_answers_end_by_themselves_at_any_of_the_four_stop_tokens(loaded: Loaded, split: Split) -> None:
    answerer = Answerer(loaded.model, loaded.processor, max_new_tokens=200)
    sample, pictures = split.read(0)
    answer = answerer.answer([answerer.prompt(sample.messages[:1], [open_picture(pictures[0])])])[0]
    assert answer.ended
    backend = loaded.processor.tokenizer.backend_tokenizer
    names = ["</s>", "<|endoftext|>", "<|assistant|>", "<|end|>"]
    assert stop_ids(loaded.processor) == [backend.token_to_id(name) for name in names]
    one = backend.token_to_id("a")
    for name in names:
        read = answerer._read(np.array([one, backend.token_to_id(name), one]), np.full(3, -0.5, np.float32))
        assert (read.text, read.logprob, read.ended) == ("a", -1.0, True)


def test_a_length_limit_cuts_an_answer_and_its_fields_are_what_is_there(loaded: Loaded, split: Split) -> None:
    prediction = predict_split(loaded, split, max_new_tokens=4, limit=1)[0]
    assert ANSWER.format(**PRODUCTS[1]).startswith(prediction.answer)
    assert prediction.fields["price"] is None


def test_limit_takes_the_first_samples(loaded: Loaded, split: Split) -> None:
    first, whole = predict_split(loaded, split, limit=3), predict_split(loaded, split)
    assert [(one.key, one.answer) for one in first] == [(one.key, one.answer) for one in whole[:3]]


def test_shuffled_pictures_give_the_answers_of_the_other_pictures(loaded: Loaded, split: Split) -> None:
    shuffled = predict_split(loaded, split, control="shuffled")
    received = exchanged_pictures(split.index.picture_counts, split.group_codes(len(split)))
    for prediction, (other, _) in zip(shuffled, received.tolist(), strict=True):
        assert prediction.fields == PRODUCTS[other % 3 == 0]
    assert shuffled == predict_split(loaded, split, control="shuffled")


def test_no_sample_gets_a_picture_of_its_own_group() -> None:
    generator = np.random.default_rng(0)
    for seed in range(50):
        count = int(generator.integers(4, 60))
        groups = generator.integers(0, max(4, count // 2), size=count)
        pictures = generator.integers(0, 4, size=count)
        slots = [(sample, place) for sample in range(count) for place in range(pictures[sample])]
        largest = max(sum(groups[sample] == group for sample, _ in slots) for group in groups)
        if largest * 2 > len(slots):
            continue
        received = exchanged_pictures(pictures, groups, seed)
        assert sorted(map(tuple, received.tolist())) == slots
        assert all(groups[other] != groups[own] for (own, _), (other, _) in zip(slots, received.tolist(), strict=True))


def test_two_samples_of_one_group_still_exchange() -> None:
    assert exchanged_pictures(np.array([1, 1]), np.array([0, 0])).tolist() == [[1, 0], [0, 0]]
    with pytest.raises(SplitError, match="at least two"):
        exchanged_pictures(np.array([1, 0]), np.array([0, 1]))


def test_single_pictures_are_asked_the_question_trained_with(loaded: Loaded, place: Path) -> None:
    pictures = [open_picture(example("x", number)[1][0].data) for number in (0, 1)]
    assert list(predict_pictures(loaded, pictures)) == [ANSWER.format(**product) for product in PRODUCTS[::-1]]


def test_a_question_without_a_tag_gets_it_as_in_training(loaded: Loaded) -> None:
    pictures = [open_picture(example("x", 1)[1][0].data)]
    plain = QUESTION.removeprefix("<|image_1|>")
    assert list(predict_pictures(loaded, pictures, plain)) == list(predict_pictures(loaded, pictures, QUESTION))


def test_command_prints_an_answer_a_picture(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = picture_file(tmp_path, 1), picture_file(tmp_path, 3)
    assert main([str(place / "runs/one"), str(one)]) == 0
    assert capsys.readouterr().out == ANSWER.format(**PRODUCTS[0]) + "\n"
    assert main([str(place / "runs/one"), str(one), str(two)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{two}: {ANSWER.format(**PRODUCTS[1])}"


def test_answers_about_pictures_are_printed_as_they_come(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(picture_file(tmp_path, number)) for number in range(4)]
    answer, calls = Answerer.answer, []

    def ends_early(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the machine goes down")
        return answer(*arguments)

    monkeypatch.setattr(Answerer, "answer", ends_early)
    with pytest.raises(RuntimeError):
        main([str(place / "runs/one"), *names, "--batch-size", "2"])
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == names[:2]


def test_command_writes_a_line_a_sample(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["--split", "validation", "--output", str(output), "--batch-size", "4"]
    assert main([str(place / "runs/one"), str(place / "shards"), *arguments]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"validation-{number}" for number in range(6)]
    assert set(lines[0]) == {"key", "answer", "fields", "logprob"}


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return error


def test_what_is_not_there_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, shards, picture = str(place / "runs/one"), str(place / "shards"), str(picture_file(tmp_path, 1))
    assert "config.yaml" in failing([str(tmp_path / "none"), picture], capsys)
    assert "hf download" in failing(["someone/something", picture], capsys)
    assert "lacks config.json" in failing([str(tmp_path), picture], capsys)
    assert "No such file" in failing([run, str(tmp_path / "none.jpg")], capsys)
    assert "no split 'tset'; there are:" in failing([run, shards, "--split", "tset"], capsys)
    assert (
        f"has no manifest.json; build one by python -m data.build, or name the pictures themselves: {tmp_path}/*"
        in (failing([run, str(tmp_path)], capsys))
    )
    assert "--question" in failing([str(place / "base"), picture], capsys)
    assert "no such checkpoint" in failing([run, picture, "--checkpoint", "step-000001"], capsys)


def test_what_is_no_picture_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "half.png").write_bytes(example("x", 1)[1][0].data[:60])
    for name in ("page.jpg", "half.png"):
        assert "is not a picture" in failing([str(place / "runs/one"), str(tmp_path / name)], capsys)


def test_an_empty_split_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shutil.copytree(place / "shards", tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"]["test"] = []
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert "'test' is empty" in failing([str(place / "runs/one"), str(shards), "--split", "test"], capsys)
    assert Split(shards).name == "validation"


def test_a_run_without_a_whole_checkpoint_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(place / "runs/one", tmp_path / "run")
    (part,) = (run / "checkpoints").glob("*/rank-00001.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    assert "no whole checkpoint" in failing([str(run), str(picture_file(tmp_path, 1))], capsys)


def test_another_base_than_trained_from_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(place / "runs/one", tmp_path / "run")
    other = shutil.copytree(place / "base", tmp_path / "base")
    (other / "generation_config.json").write_text("{}")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(place / "base"), str(other)))
    assert "is not the model any more" in failing([str(run), str(picture_file(tmp_path, 1))], capsys)


def test_weights_that_are_nan_are_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(place / "base", tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    picture = str(picture_file(tmp_path, 1))
    assert "NaN" in failing([str(folder), picture, "--question", "What?"], capsys)


def test_a_damaged_sample_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shutil.copytree(place / "shards", tmp_path / "shards")
    tar = shards / "test/shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[Split(shards).index.entry(4).offset + 700] ^= 1
    tar.write_bytes(content)
    arguments = [str(place / "runs/one"), str(shards), "--output", str(tmp_path / "out.jsonl")]
    assert "sample 'test-4'" in failing(arguments, capsys)


def test_the_template_of_the_shards_is_used(place: Path, loaded: Loaded) -> None:
    assert loaded.processor.chat_template == Manifest.load(place / "shards").chat_template["template"]


def test_long_prompts_make_small_batches(loaded: Loaded, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = SplitQuestions(Answerer(loaded.model, loaded.processor), split, batch_size=8)
    (window,) = questions.windows()
    assert [len(batch) for batch in window] == [8, 8, 2]
    monkeypatch.setattr("train.questions.MOST_TOKENS", 200)
    (window,) = questions.windows()
    assert sorted(number for batch in window for number in batch) == list(range(len(split)))
    assert 1 <= max(len(batch) for batch in window) < 8


@pytest.mark.parametrize("control", ["blank", "no-picture"])
def test_controls_without_pictures_answer_all_alike(loaded: Loaded, split: Split, control: str) -> None:
    found = predict_split(loaded, split, control=control)
    assert [one.key for one in found] == split.index.keys
    if control == "blank":
        assert all(one.fields == PRODUCTS[1] for one in found)
    else:
        assert len({(one.answer, one.logprob) for one in found}) == 1


def test_windows_are_the_split_in_order_whatever_the_control(loaded: Loaded, split: Split) -> None:
    answerer = Answerer(loaded.model, loaded.processor)
    for control in (None, *CONTROLS):
        questions = SplitQuestions(answerer, split, control, batch_size=1)
        numbers = [sorted(number for batch in window for number in batch) for window in questions.windows()]
        assert numbers == [list(range(16)), [16, 17]]


def table(folder: Path, rows: list[str]) -> Path:
    """A table that names pictures beside it."""
    for number in range(4):
        picture_file(folder, number)
    path = folder / "catalogue.csv"
    path.write_text("sku,picture\n" + "\n".join(rows) + "\n")
    return path


def test_a_table_is_answered_row_by_row_and_bad_pictures_are_said(place: Path, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    names = ["picture-0.png", "page.jpg", "none.png", "", "../out.png", "https://a.b/c.jpg", "picture-1.png"]
    path = table(tmp_path, [f"s{number},{name}" for number, name in enumerate(names)])
    output = tmp_path / "out.jsonl"
    arguments = [str(place / "runs/one"), str(path), "--key", "sku", "--batch-size", "2", "--output", str(output)]
    assert main(arguments) == 0
    found = read_predictions(output)
    assert [one.key for one in found] == [f"s{number}" for number in range(len(names))]
    assert [found[0].fields, found[-1].fields] == [PRODUCTS[1], PRODUCTS[0]]
    said = ["not a picture", "cannot be read", "names no picture", "leads out", "fetch it first"]
    assert all(text in one.problem for text, one in zip(said, found[1:-1], strict=True))
    assert all(one.answer == "" for one in found[1:-1])


def test_rows_without_a_key_are_named_by_their_number(place: Path, tmp_path: Path) -> None:
    picture = picture_file(tmp_path, 0).name
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"sku": key, "picture": picture}) + "\n" for key in ("a", None, "", "b")))
    output = tmp_path / "out.jsonl"
    assert main([str(place / "runs/one"), str(path), "--key", "sku", "--output", str(output)]) == 0
    assert [one.key for one in read_predictions(output)] == ["a", "1", "2", "b"]


def test_adapters_alone_are_told_from_a_model(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapters alone" in failing([str(tmp_path), str(picture_file(tmp_path, 1))], capsys)


def test_columns_that_are_not_there_are_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = table(tmp_path, ["a,picture-0.png"]), str(place / "runs/one")
    assert "no column 'foto'" in failing([run, str(path), "--column", "foto"], capsys)
    assert "no column 'ean'" in failing([run, str(path), "--key", "ean"], capsys)
    path.write_text("sku,picture\n")
    assert "no rows" in failing([run, str(path)], capsys)
    assert "--control goes with" in failing([run, str(path), "--control", "blank"], capsys)
