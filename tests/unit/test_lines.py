"""Files of lines that a run appends to, on disks that refuse them for a while."""

import json
from pathlib import Path

import pytest

from train.lines import LineFile, cut_lines


def test_lines_that_a_full_disk_refuses_follow_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    room = [1000, 7, 0, 0, 1000, 1000]
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        left = room.pop(0)
        if not left:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:left])

    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    monkeypatch.setattr(os, "write", full)
    for step in range(1, 5):
        file.add({"step": step})
    file.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": step} for step in range(1, 5)]
    said = capsys.readouterr().err
    assert said.count("cannot be written (No space left on device)") == 1
    assert "is written again" in said


def test_lines_after_a_step_and_one_that_was_cut_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [record["step"] for record in cut_lines(path, 2)] == [1, 2]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
