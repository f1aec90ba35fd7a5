"""What a step says of itself without a terminal."""

import re

import pytest

from data import progress as module
from data.progress import progress


def test_without_a_terminal_lines_say_how_much_is_done_and_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    guesses = iter([None, 40, 50])
    with progress("fetch", "rows", lambda: next(guesses)) as report:
        report(10, pictures=10, bytes=1_000_000, rejected=2)
        report(10)
    first, second, last = capsys.readouterr().err.splitlines()
    assert re.match(r"fetch: 10, \d+ s, [\d,]+ rows/s, [\d,]+ pictures/s, [\d,.]+ MB/s, 2 rejected", first)
    assert re.match(r"fetch: 20 of about 40, \d+ s, \d+ s left, ", second)
    assert re.match(r"fetch: 20 of about 50, ", last)
    with progress("write", "samples", 4) as report:
        report(4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("write: 4 of 4, ")
