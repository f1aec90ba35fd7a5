"""What a person sees during training: lines from rank 0, and a bar where there is a terminal."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Console:
    """Prints on rank 0 and is silent elsewhere."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        """One or more lines."""
        if not self.speaks:
            return
        if self.bar is not None:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def start_bar(self, done: int, total: int) -> None:
        """Show a bar of the steps below the lines, on a terminal."""
        if self.speaks and sys.stdout.isatty():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Terminal(), transient=True)
            self.bar.add_task("training", total=total, completed=done)
            self.bar.start()

    def move_bar(self, done: int) -> None:
        """Set how many steps are done."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done)

    def stop_bar(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def train_line(record: Mapping[str, Any]) -> str:
    """A training step on one line."""
    time = record["time"]
    norm = "  skipped" if record["grad_norm"] is None else f"{record['grad_norm']:9.4f}"
    scale = ""
    if "loss_scale" in record:
        norm = " overflow" if record["overflow"] else norm
        scale = f"  scale {record['loss_scale']:7g}"
    loss = "      -" if record["loss"] is None else f"{record['loss']:7.4f}"
    used = f"  MFU {time['mfu']:6.1%}" if "mfu" in time else ""
    slowest = ""
    if "slowest_rank" in time:
        slowest = f"  slowest rank {time['slowest_rank']} (+{time['slowest_behind_s']:.2f} s)"
    return (
        f"step {record['step']:>{len(str(record['steps']))}}/{record['steps']}  loss {loss}  lr {record['lr']:.2e}  "
        f"norm {norm}{scale}  {time['tokens_per_s']:8,.0f} tokens/s  {time['pictures_per_s']:6.1f} pictures/s{used}  "
        f"{time['step_s']:6.2f} s  data {time['data_wait_s']:5.2f} s  memory {time['memory_gib']:5.2f} GiB{slowest}"
    )


def validation_line(record: Mapping[str, Any]) -> str:
    """A measurement on one line."""
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    answers = record.get("answers")
    scored = ""
    if answers and "problem" in answers:
        scored = f"\n  no answers: {answers['problem']}"
    elif answers:
        scores = (f"{key} {value:.3g}" for key, value in answers.items() if "/" in key and value is not None)
        scored = f"\n  {answers['samples']} answers, {answers['unreadable']} unreadable: {', '.join(scores)}"
    return (
        f"step {record['step']}  validation loss {loss} over {record['label_tokens']:,} tokens of "
        f"{record['samples']:,} samples  {record['time']['seconds']:.1f} s{scored}"
    )
