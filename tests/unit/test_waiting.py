"""The warning that training waits for its data."""

from train.pipeline.encode import ENCODING, READING, REMOTE
from train.waiting import SAID_EVERY, WINDOW, Waiting

SPENT = {READING: 0.1, REMOTE: 0.0, ENCODING: 0.4}


def said(waiting: Waiting, waited: list[float], steps: int = WINDOW, spent: dict[str, float] = SPENT) -> list[str]:
    return [text for _ in range(steps) if (text := waiting.add(1.0, waited, spent))]


def begun() -> Waiting:
    waiting = Waiting(workers=2)
    assert waiting.add(30.0, [29.0], SPENT) is None
    return waiting


def test_waiting_up_to_a_twentieth_is_not_worth_a_word():
    assert said(begun(), [0.05, 0.01], steps=3 * WINDOW) == []


def test_more_is_told_with_what_the_workers_time_went_into():
    (text,) = said(begun(), [0.2, 0.19])
    assert "20% of the last 50 steps was waiting for data; 80% of the workers' time went into decoding" in text
    (text,) = said(begun(), [0.2, 0.19], spent={READING: 3.0, REMOTE: 0.0, ENCODING: 1.0})
    assert "75% of the workers' time went into reading the shards" in text
    (text,) = said(begun(), [0.2, 0.19], spent={READING: 0.0, REMOTE: 3.0, ENCODING: 1.0})
    assert "fetching shards from elsewhere" in text


def test_a_rank_that_is_slow_alone_is_named():
    (text,) = said(begun(), [0.01, 0.02, 0.3])
    assert "on rank 2 above all" in text


def test_it_is_not_said_in_every_window():
    assert len(said(begun(), [0.2], steps=WINDOW * SAID_EVERY)) == 1
    assert len(said(begun(), [0.2], steps=WINDOW * (SAID_EVERY + 2))) == 2
