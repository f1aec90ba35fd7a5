"""Answers on their way: batches as they are answered, by any number of ranks, until a whole file is made of them.

    .NAME.DIGEST.parts/      beside the predictions; DIGEST is of all that they depend on
        lock                 held by the job that answers
        ….lines              what one rank answered: a line a batch, its number, the hash of the rest, the rest

A line that a kill cut short has the wrong hash and is asked for again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import xxhash

from data.schema import UserError
from data.whole import whole_file
from train.score.fields import Prediction


class JournalError(UserError):
    """The answers so far belong to another job, or there is no place for them."""


@dataclass(frozen=True, slots=True)
class _Place:
    file: int
    offset: int
    length: int


class Journal:
    """The answered batches of one file of predictions."""

    def __init__(self, output: Path, spec: Mapping[str, Any]) -> None:
        """`spec`: all that the predictions depend on; answers to something else lie elsewhere."""
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
        self.output = output
        self.folder = output.with_name(f".{output.name}.{digest}.parts")
        self._lock: IO[str] | None = None
        self._mine: IO[bytes] | None = None

    def hold(self) -> None:
        """Make the folder and keep it for this process; raises JournalError where another job has it, or it cannot be
        written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise JournalError(
                f"{self.output}: its folder cannot be written ({error.strerror}); name another file by --output"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            raise JournalError(
                f"{self.output}: another job is writing it ({self._lock.read().strip()}); wait for it, or take another "
                "file by --output"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def done(self) -> set[int]:
        """The numbers of the batches that are answered."""
        return set(self._places())

    def add(self, batch: int, answers: Iterable[tuple[int, Prediction]]) -> None:
        """Keep a batch's predictions, each with its place in the order of all."""
        if self._mine is None:
            self._mine = (self.folder / f"{uuid.uuid4().hex}.lines").open("xb")
        rest = json.dumps([(number, one.to_json()) for number, one in answers]).encode()
        self._mine.write(b"%d %s %s\n" % (batch, xxhash.xxh3_64_hexdigest(rest).encode(), rest))
        self._mine.flush()
        os.fsync(self._mine.fileno())

    def finish(self, windows: Iterable[Sequence[int]]) -> None:
        """Write the predictions in their order, whole or not at all, and forget the parts.

        windows: the numbers of the batches, window after window; one window is held in memory at a time.
        """
        places, files = self._places(), [path.open("rb") for path in self._files()]
        try:
            with whole_file(self.output) as lines:
                for window in windows:
                    answers: list[tuple[int, str]] = []
                    for batch in window:
                        place = places[batch]
                        files[place.file].seek(place.offset)
                        answers += json.loads(files[place.file].read(place.length))
                    for _, line in sorted(answers):
                        lines.write(line.encode() + b"\n")
        finally:
            for file in files:
                file.close()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let go of the files; a folder without any answer goes."""
        if self._lock is not None and self.folder.is_dir() and not self._files():
            shutil.rmtree(self.folder)
        for file in (self._mine, self._lock):
            if file is not None:
                file.close()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.lines"))

    def _places(self) -> dict[int, _Place]:
        """Where the predictions of each answered batch lie."""
        places = {}
        for number, path in enumerate(self._files()):
            with path.open("rb") as lines:
                end = 0
                for line in lines:
                    start, end = end, end + len(line)
                    batch, _, rest = line.partition(b" ")
                    digest, _, rest = rest.partition(b" ")
                    body = rest.removesuffix(b"\n")
                    if batch.isdigit() and digest == xxhash.xxh3_64_hexdigest(body).encode():
                        places[int(batch)] = _Place(number, start + len(line) - len(rest), len(body))
        return places
