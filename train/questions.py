"""What a model is asked about: the samples of a split, the rows of a table, or pictures by name.

All of them come in windows of batches that are made before any rank has its share, so that what is asked together, and
how it is padded, is the same for any number of ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.entries import Source
from data.geometry import grids, image_tokens
from data.images import PictureError, open_picture
from data.locate import Inside, Local, Nowhere, locate
from data.manifest import file_sha256
from data.schema import IMAGE_TAG, Rejected, Row, Sample, UserError
from train.answering import Answerer, Prompt
from train.score.fields import AnswerParser
from train.score.split import Split, exchanged_pictures

CONTROLS = ("shuffled", "blank", "no-picture")
# Batches that are sorted by length together, and stand together in the predictions.
WINDOW_BATCHES = 16
# Of prompts in one batch: their cache takes about 10 GB in the published model.
MOST_TOKENS = 24_576
PICTURE_COLUMNS = ("picture", "image", "photo", "file", "file_name", "path", "imageurl", "image_path")


class QuestionError(UserError):
    """There is nothing to ask, or nothing to ask about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One sample as it is put to the model."""

    key: str
    prompt: Prompt | None
    """None where it cannot be asked about."""
    problem: str = ""
    """Why it cannot."""


class Questions(Protocol):
    """Samples, by numbers that give the order of their predictions."""

    name: str
    """For a person who waits."""
    count: int
    parser: AnswerParser | None
    spec: dict[str, Any]
    """What the predictions depend on beside the model; JSON."""
    repeats: bool
    """Whether many prompts are the same, so that each is asked once a batch."""

    def windows(self) -> Iterator[list[list[int]]]:
        """The batches, window after window; every window holds the numbers that follow the last one's."""

    def take(self, batch: Sequence[int]) -> list[Callable[[], Asked]]:
        """How each sample of a batch is prepared, by any thread; batches are taken in their order."""


class SplitQuestions:
    """The samples of a split, as they stand or as a control."""

    def __init__(
        self,
        answerer: Answerer,
        split: Split,
        control: str | None = None,
        batch_size: int = 32,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        """
        control: "shuffled": asked about other samples' pictures; "blank": about white ones of the same sizes;
            "no-picture": without any.
        limit: only the first so many samples. seed: of the shuffling.
        Raises UserError where there are no pictures to shuffle.
        """
        self.name = f"{split.name}{f', {control}' if control else ''}"
        self.count = min(len(split), limit or len(split))
        self.parser: AnswerParser | None = split.parser
        self.spec = {
            "shards": file_sha256(split.shards / "manifest.json"),
            "split": split.name,
            "control": control,
            "batch_size": batch_size,
            "limit": limit,
            "seed": seed,
        }
        self.repeats = control in ("blank", "no-picture")
        self._answerer, self._split, self._control, self._batch_size = answerer, split, control, batch_size
        self._received: NDArray[np.int64] | None = None
        if control == "shuffled":
            counts = split.index.picture_counts[: self.count]
            self._received = exchanged_pictures(counts, split.group_codes(self.count), seed)

    def windows(self) -> Iterator[list[list[int]]]:
        """Batches of at most batch_size prompts and MOST_TOKENS tokens, the longest first: they hold little padding."""
        size = self._batch_size * WINDOW_BATCHES
        for start in range(0, self.count, size):
            yield self._window(start, min(start + size, self.count))

    def _window(self, start: int, end: int) -> list[list[int]]:
        lengths = self._lengths(start, end)
        order = np.lexsort((np.arange(len(lengths)), -lengths))
        batches = []
        place = 0
        while place < len(order):
            size = max(1, min(self._batch_size, MOST_TOKENS // max(int(lengths[order[place]]), 1)))
            batches.append([start + int(number) for number in order[place : place + size]])
            place += size
        return batches

    def _lengths(self, start: int, end: int) -> NDArray[np.int64]:
        """About how many tokens each prompt has; text is shorter in tokens than in bytes."""
        index, processor = self._split.index, self._answerer.processor
        lengths = index.text_bytes[start:end].astype(np.int64) // 2
        if self._control == "no-picture":
            return lengths
        first, last = int(index.picture_offsets[start]), int(index.picture_offsets[end])
        shown = np.arange(first, last)
        if self._received is not None:
            given = self._received[first:last]
            shown = index.picture_offsets[given[:, 0]] + given[:, 1]
        cut = grids(index.picture_sizes[shown], processor.num_crops, processor.crop_size)
        tokens = image_tokens(cut[:, 0], cut[:, 1], processor.tokens_per_side)
        sums = np.concatenate(([0], np.cumsum(tokens)))
        ends = index.picture_offsets[start : end + 1] - first
        result: NDArray[np.int64] = lengths + sums[ends[1:]] - sums[ends[:-1]]
        return result

    def take(self, batch: Sequence[int]) -> list[Callable[[], Asked]]:
        """See Questions."""
        return [partial(self._ask, number) for number in batch]

    def _ask(self, number: int) -> Asked:
        sample, pictures = self._shown(number)
        last = max((place for place, one in enumerate(sample.messages) if one["role"] == "assistant"), default=None)
        messages = sample.messages[:last]
        if self._control == "no-picture":
            messages = tuple(one | {"content": _without_tags(one["content"])} for one in messages)
        return Asked(key=sample.key, prompt=self._answerer.prompt(messages, pictures))

    def _shown(self, number: int) -> tuple[Sample, list[Image.Image]]:
        """A sample and the pictures that the model sees for it."""
        split, index = self._split, self._split.index
        if self._control is None:
            sample, found = split.read(number)
            return sample, [open_picture(data) for data in found]
        sample = split.read_text(number)
        first, last = int(index.picture_offsets[number]), int(index.picture_offsets[number + 1])
        if self._received is not None:
            others = self._received[first:last].tolist()
            return sample, [open_picture(split.read(other)[1][place]) for other, place in others]
        if self._control == "no-picture":
            return sample, []
        sizes = index.picture_sizes[first:last].tolist()
        return sample, [Image.new("RGB", (width, height), "white") for width, height in sizes]


class _OneQuestion:
    """The same question about each picture; batches are what follows one another, for no sizes are known before."""

    parser: AnswerParser | None
    repeats = False
    count: int

    def __init__(self, answerer: Answerer, content: str, parser: AnswerParser | None, batch_size: int) -> None:
        self._answerer, self._content, self.parser = answerer, content, parser
        processor = answerer.processor
        # The longest that a picture may be: its crops in one row or one column.
        longest = image_tokens(processor.num_crops, 1, processor.tokens_per_side) + len(content)
        self._size = max(1, min(batch_size, MOST_TOKENS // longest))

    def windows(self) -> Iterator[list[list[int]]]:
        """See Questions."""
        for start in range(0, self.count, self._size):
            yield [list(range(start, min(start + self._size, self.count)))]

    def _ask(self, key: str, read: Callable[[], bytes]) -> Asked:
        try:
            picture = open_picture(read())
            message = {"role": "user", "content": self._content}
            return Asked(key=key, prompt=self._answerer.prompt([message], [picture]))
        except OSError as error:
            return Asked(key=key, prompt=None, problem=f"picture cannot be read: {error.strerror or error}")
        except (PictureError, ValueError) as error:
            return Asked(key=key, prompt=None, problem=f"not a picture that can be used: {error}")


class PictureQuestions(_OneQuestion):
    """Picture files by name; the key of each is its path."""

    def __init__(
        self, answerer: Answerer, paths: Sequence[Path], content: str, parser: AnswerParser | None, batch_size: int
    ) -> None:
        super().__init__(answerer, content, parser, batch_size)
        self.name, self.count, self._paths = "pictures", len(paths), paths
        sizes = [(str(path), path.stat().st_size) for path in paths]
        self.spec = {"pictures": sizes, "question": content, "batch_size": batch_size}

    def take(self, batch: Sequence[int]) -> list[Callable[[], Asked]]:
        """See Questions."""
        return [partial(self._ask, str(self._paths[number]), self._paths[number].read_bytes) for number in batch]


class TableQuestions(_OneQuestion):
    """The rows of a table (CSV, TSV, JSON lines, Parquet) that names a picture in each; they are read as they come."""

    def __init__(
        self,
        answerer: Answerer,
        table: Path,
        source: Source,
        content: str,
        parser: AnswerParser | None,
        batch_size: int,
        limit: int | None = None,
        column: str | None = None,
        key_column: str | None = None,
    ) -> None:
        """
        column: of the picture; None for the first of PICTURE_COLUMNS that there is.
        key_column: whose value is a prediction's key; None for the row's number, from 0, which also names a row whose
            key is missing.
        Raises QuestionError for columns that are not there and a table without rows.
        """
        super().__init__(answerer, content, parser, batch_size)
        self.name, self._source, self._root = table.name, source, str(Path(source.picture_root).resolve())
        self._column, self._key_column = _picture_column(table, source, column), key_column
        if key_column is not None and key_column not in source.columns:
            raise QuestionError(f"{table} has no column '{key_column}'; there are: {', '.join(source.columns)}")
        self.count = sum(1 for _ in islice(source.entries(), limit))
        if not self.count:
            raise QuestionError(f"{table} has no rows")
        self.spec = {
            "table": file_sha256(table),
            "columns": [self._column, key_column],
            "question": content,
            "batch_size": batch_size,
            "limit": limit,
        }
        self._rows = source.entries()
        self._next = 0

    def take(self, batch: Sequence[int]) -> list[Callable[[], Asked]]:
        """See Questions; rows before the batch are passed over."""
        rows = list(islice(self._rows, batch[0] - self._next, batch[-1] + 1 - self._next))
        self._next = batch[-1] + 1
        return [partial(self._ask_row, row) for row in rows]

    def _ask_row(self, row: Row | Rejected) -> Asked:
        if isinstance(row, Rejected):
            return Asked(key=str(row.number), prompt=None, problem=f"{row.reason}: {row.detail}")
        named = None if self._key_column is None else row.values.get(self._key_column)
        key = str(row.number) if named is None or named == "" else str(named)
        place = locate(row.values.get(self._column), self._root)
        if isinstance(place, Local):
            return self._ask(key, Path(place.path).read_bytes)
        if isinstance(place, Inside):
            return self._ask(key, lambda: place.data)
        if isinstance(place, Nowhere):
            return Asked(key=key, prompt=None, problem=place.detail)
        return Asked(key=key, prompt=None, problem="a picture elsewhere; fetch it first: python -m data.build")


def _picture_column(table: Path, source: Source, wanted: str | None) -> str:
    found = wanted or next((name for name in PICTURE_COLUMNS if name in source.columns), None)
    if found not in source.columns:
        which = f"no column '{wanted}'" if wanted else "none of the usual columns of pictures"
        raise QuestionError(
            f"{table} has {which}; there are: {', '.join(source.columns)}; name the one with pictures by --column"
        )
    assert found is not None
    return found


def _without_tags(content: str) -> str:
    """A message without image tags and the white space behind them."""
    pieces = IMAGE_TAG.split(content)[::2]
    return pieces[0] + "".join(piece.lstrip() for piece in pieces[1:])
