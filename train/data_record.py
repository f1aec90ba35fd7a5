"""What the data did to a run, in two files of its folder: samples left out, and what was mended or sat out.

`bad_samples.jsonl` is the same for any number of ranks, in the order of steps: a line for each time a sample was left
out. `data_events.jsonl` has what depends on the machine: a worker started again, an outage of the storage.
"""

import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.distributed import World, marked
from train.lines import LineFile, cut_lines
from train.pipeline.batch import BadSample
from train.pipeline.events import Event, say

BAD_SAMPLES = "bad_samples.jsonl"
EVENTS = "data_events.jsonl"


class BadDataError(UserError):
    """More samples are bad than the run may leave out."""


class DataRecord:
    """Every rank has one and calls it alike; rank 0 writes."""

    def __init__(self, folder: Path, world: World, *, max_bad: int, step: int) -> None:
        """
        Args:
            folder: the run's.
            max_bad: most samples that may be bad, each counted once.
            step: the optimizer step the run goes on from; what was recorded after it will be found again.
        Raises:
            UserError: the files cannot be read or written.
        """
        self._folder = folder
        self._world = world
        self._max_bad = max_bad
        known = world.from_first(lambda: cut_lines(folder / BAD_SAMPLES, step))
        self._bad = {(record["kind"], record["shard"], record["key"]) for record in known}

    def add(self, step: int, kind: str, bad: Sequence[tuple[int, BadSample]], events: Sequence[Event]) -> None:
        """Record what all ranks' packs of a step were made without, and what happened while they were made.

        To be called by all ranks where any of them has something to record.

        Args:
            step: the optimizer step, as in metrics.jsonl.
            kind: train | validation, as there.
            bad, events: this rank's; each bad sample with the number of its pack in the global batch.
        Raises:
            BadDataError: there are more bad samples than allowed; on every rank.
        """
        left_out = [(number, asdict(sample)) for number, sample in bad]
        noted = [asdict(event) | {"rank": self._world.rank, "host": socket.gethostname()} for event in events]
        gathered = self._world.gather_objects((left_out, noted))
        every = sorted((one for found, _ in gathered for one in found), key=lambda one: one[0])
        happened = [{"step": step, "kind": kind} | one for _, found in gathered for one in found]
        lines = [{"step": step, "kind": kind, "pack": number} | sample for number, sample in every]
        if self._world.first:
            self._append(BAD_SAMPLES, lines)
            self._append(EVENTS, happened)
            for line in lines:
                say(f"left out: {line['key']} ({line['shard']} at byte {line['byte']}): {line['reason']}")
            for one in happened:
                say(f"data: {one['where']}: {one['what']}")
        self._bad |= {(kind, line["shard"], line["key"]) for line in lines}
        if len(self._bad) > self._max_bad:
            latest = "".join(f", the latest {one['key']!r} of {one['shard']}: {one['reason']}" for one in lines[-1:])
            error = BadDataError(
                f"{len(self._bad)} samples could not be used, data.max_bad allows {self._max_bad}{latest}; "
                f"{self._folder / BAD_SAMPLES} lists them: mend the shards (python -m data.verify SHARDS) or raise "
                "data.max_bad, and start the run again: it goes on from its newest checkpoint"
            )
            raise marked(error, self._world.first)

    def _append(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        if lines:
            file = LineFile(self._folder / name)
            for line in lines:
                file.add(line)
            file.close()
