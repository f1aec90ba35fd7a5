"""Samples by number: range reads from the shards by the index, each checked against its hash."""

import os
from collections import OrderedDict
from pathlib import Path

from data.schema import Sample, UserError
from data.shards import parse_sample
from train.pipeline.corpus import Corpus


class ReadError(UserError):
    """A shard cannot be opened or read at all."""


class ShardReader:
    """Reads samples of a corpus, with a bounded number of shards open at a time."""

    def __init__(self, corpus: Corpus, max_open: int = 64) -> None:
        """
        Args:
            corpus: where each sample lies.
            max_open: shards kept open; the one not used for longest is closed first.
        """
        self._corpus = corpus
        self._max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()

    def shard_path(self, sample: int) -> Path:
        """The shard that holds a sample."""
        return self._corpus.shard_paths[self._corpus.entry(sample).shard]

    def read(self, sample: int) -> tuple[Sample, list[bytes]]:
        """One sample by its number in the corpus: what it says and its pictures as stored.

        Raises:
            ShardError: its bytes are not those that were written, or not a sample.
            ReadError: the shard is gone or cannot be read.
        """
        entry = self._corpus.entry(sample)
        path = self._corpus.shard_paths[entry.shard]
        try:
            descriptor = self._descriptor(entry.shard)
            content = os.pread(descriptor, entry.length, entry.offset)
            while 0 < len(content) < entry.length:
                more = os.pread(descriptor, entry.length - len(content), entry.offset + len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise ReadError(f"{path}: {error.strerror}; bring the shard back, then start the run again") from error
        return parse_sample(content, entry, path)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) >= self._max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._corpus.shard_paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            os.close(self._open.popitem()[1])
