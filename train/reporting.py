"""What a run in progress tells: its console, its files and W&B. None of them ends a training when it fails."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data.whole import write_whole
from train.asking import Answers
from train.console import Console
from train.lines import LineFile
from train.runs import RunFolder, State
from train.score.fields import write_predictions
from train.score.upload import answers_table
from train.tracking import Tracker


class Report:
    """Every rank has one; rank 0's speaks and writes, the others' do nothing."""

    def __init__(self, run: RunFolder, console: Console, tracker: Tracker | None) -> None:
        self._run = run
        self._tracker = tracker
        self._lines = LineFile(run.metrics) if console.speaks else None
        self._refused: set[str] = set()
        self._console = console
        self.say = console.say

    def line(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, and the same numbers to W&B."""
        if self._lines is not None:
            self._lines.add(record)
        if self._tracker is not None:
            every = {**record, **{f"answers/{key}": value for key, value in record.get("answers", {}).items()}}
            flat = {f"{record['kind']}/{key}": value for key, value in every.items() if isinstance(value, int | float)}
            times = {f"time/{record['kind']}_{key}": value for key, value in record["time"].items()}
            self._tracker.log(record["step"], flat | times)

    def answers(self, step: int, found: Answers) -> None:
        """Keep what was answered at a step in the run's folder, and show pictures, truths and answers at W&B."""
        if not self._console.speaks or not found.predictions:
            return
        path = self._run.path / "answers" / f"step-{step:06d}.jsonl"

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            write_predictions(path, found.predictions)

        self._try(path, write)
        if self._tracker is not None:
            self._tracker.table(step, "validation/predictions", partial(answers_table, found.fields, found.shown))

    def status(self, state: State, *, step: int, steps: int, checkpoint: Path | None, reason: str) -> None:
        """Replace status.json."""
        if self._console.speaks:
            self._try(
                self._run.path / "status.json",
                lambda: self._run.set_status(state, step=step, steps=steps, checkpoint=checkpoint, reason=reason),
            )

    def best(self, values: Mapping[str, Any]) -> None:
        """Replace best.json."""
        path = self._run.path / "best.json"
        self._try(path, lambda: write_whole(path, (json.dumps(values) + "\n").encode()))

    def _try(self, path: Path, write: Callable[[], None]) -> None:
        """Write a file that training can do without; that it cannot be written, or can again, is told once."""
        try:
            write()
        except OSError as error:
            if path.name not in self._refused:
                self.say(f"warning: {path} cannot be written ({error.strerror}); training goes on")
            self._refused.add(path.name)
            return
        if path.name in self._refused:
            self._refused.discard(path.name)
            self.say(f"{path} is written again")

    def close(self) -> None:
        """No more lines come."""
        if self._lines is not None:
            self._lines.close()
