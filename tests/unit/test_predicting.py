"""Predictions are one file, the same for any number of ranks, also where earlier starts were cut short."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.factories.memory import Peak
from tests.factories.thread_ranks import on_ranks
from train.answering import Answer, Prompt
from train.distributed import World
from train.journal import Journal, JournalError
from train.predicting import predict_into
from train.questions import Asked
from train.score.fields import Prediction, each_prediction, read_predictions

COUNT, BATCH, WINDOW = 60, 2, 6


class Numbers:
    """Questions that are numbers; every window stands backwards."""

    name, parser, repeats = "numbers", None, False

    def __init__(self, count: int = COUNT) -> None:
        self.count, self.spec, self.taken = count, {"count": count}, 0

    def windows(self) -> Iterator[list[list[int]]]:
        for start in range(0, self.count, WINDOW):
            numbers = range(min(start + WINDOW, self.count) - 1, start - 1, -1)
            yield [list(numbers[place : place + BATCH]) for place in range(0, len(numbers), BATCH)]

    def take(self, batch: Sequence[int]) -> list[Callable[[], Asked]]:
        self.taken += 1
        return [partial(self.ask, number) for number in batch]

    def ask(self, number: int) -> Asked:
        return Asked(key=f"k{number}", prompt=number)  # type: ignore[arg-type]


class Echo:
    """Answers each number with its batch; fails at one, if asked to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        if self.fails_at in prompts:
            raise OSError("no memory")
        return [Answer(text=f"{one} of {prompts}", logprob=-0.5, ended=True) for one in prompts]


@pytest.fixture(autouse=True)
def echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.predicting.Answerer", Echo)


def predict(output: Path, world: World, fails_at: int | None = None, questions: Numbers | None = None) -> Numbers:
    questions = questions or Numbers()
    predict_into(output, questions, Echo(fails_at), world, {"model": "echo"})  # type: ignore[arg-type]
    return questions


def test_any_number_of_ranks_writes_the_same_bytes_in_order(tmp_path: Path) -> None:
    files = []
    for ranks in (1, 2, 3, 7):
        output = tmp_path / f"{ranks}.jsonl"
        on_ranks(ranks, partial(predict, output))
        files.append(output.read_bytes())
    assert len(set(files)) == 1
    found = read_predictions(tmp_path / "1.jsonl")
    assert [one.key for one in found] == [f"k{number}" for number in range(COUNT)]
    assert found[0].answer == "0 of [1, 0]"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "3.jsonl", "7.jsonl"]


def test_a_start_cut_short_is_gone_on_from_with_other_ranks(tmp_path: Path) -> None:
    on_ranks(1, partial(predict, tmp_path / "whole.jsonl"))
    output = tmp_path / "cut.jsonl"
    for error in on_ranks(2, partial(predict, output, fails_at=45)):
        assert "no memory" in str(error)
    assert not output.exists()
    (parts,) = tmp_path.glob(".cut.jsonl.*.parts")
    files = sorted(parts.glob("*.lines"))
    answered = sum(path.read_bytes().count(b"\n") for path in files)
    assert answered > 3
    # A kill cuts a line, a disk turns a byte: both batches are asked for again.
    files[0].write_bytes(files[0].read_bytes()[:-9])
    content = bytearray(files[1].read_bytes())
    content[40] ^= 1
    files[1].write_bytes(content)
    asked = on_ranks(3, partial(predict, output))
    assert sum(one.taken for one in asked) == COUNT // BATCH - answered + 2
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_answers_to_something_else_are_not_taken(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    on_ranks(1, partial(predict, output, fails_at=45))
    on_ranks(1, partial(predict, output, questions=Numbers(8)))
    assert next(one.answer for one in each_prediction(output)) == "0 of [1, 0]"
    assert len(read_predictions(output)) == 8


def test_a_second_job_on_the_same_file_is_refused(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "out.jsonl", {}), Journal(tmp_path / "out.jsonl", {})
    first.hold()
    with pytest.raises(JournalError, match="another job is writing it"):
        second.hold()
    first.close()
    second.hold()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(JournalError, match=r"cannot be written \(Not a directory\); name another file"):
        Journal(tmp_path / "file/out.jsonl", {}).hold()


def test_a_problem_stands_in_its_line_alone() -> None:
    fine = Prediction(key="a", answer="b", fields={}, logprob=-0.25)
    bad = Prediction(key="a", answer="", fields={}, logprob=0.0, problem="torn")
    assert "problem" not in json.loads(fine.to_json())
    assert Prediction.from_json(bad.to_json()) == bad


@pytest.mark.soak
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WINDOW", 512)
    monkeypatch.setattr(f"{__name__}.BATCH", 32)
    grown = []
    for count in (20_000, 300_000):
        peak = Peak()
        peak.start()
        on_ranks(1, partial(predict, tmp_path / f"{count}.jsonl", questions=Numbers(count)))
        peak.ended.set()
        peak.join()
        grown.append(peak.most - peak.base)
        assert sum(1 for _ in each_prediction(tmp_path / f"{count}.jsonl")) == count
    print(f"{grown[0] / 1e6:.1f} MB for 20,000 rows, {grown[1] / 1e6:.1f} MB for 300,000")
    # Of each batch of 32 it is kept where it lies, which is about ten bytes a row.
    assert grown[1] < grown[0] + 10e6
