"""Samples by their index entries, wherever their shards are, each checked against its hash."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from data.index import IndexEntry
from data.schema import Sample
from data.shards import ShardError, parse_sample
from train.pipeline.corpus import Corpus
from train.pipeline.events import Event
from train.pipeline.patience import Patience
from train.pipeline.remote import RemoteShards, origin
from train.pipeline.storage import Gone, LocalShards, Shards, Storage

TEXTS_AT_ONCE = 64


class ShardReader:
    """Reads samples of a corpus."""

    def __init__(self, corpus: Corpus, max_open: int = 64, storage: Storage | None = None) -> None:
        """
        Args:
            corpus: where each sample lies.
            max_open: shards kept open; the one not used for longest is closed first.
            storage: how to read; None for shards on this machine.
        """
        storage = storage or Storage()
        self._corpus = corpus
        self._patience = Patience(storage.patience_s, storage.first_pause_s)
        self._sets: list[Shards] = []
        for one in corpus.sets:
            url = origin(one.folder)
            if url:
                self._sets.append(RemoteShards(url, one.folder, storage, self._patience, max_open))
            else:
                self._sets.append(LocalShards(one.folder, self._patience, max_open))
        self._set_of = [place for place, one in enumerate(corpus.sets) for _ in one.shard_names]

    @property
    def remote_s(self) -> float:
        """Seconds spent waiting for other machines."""
        return sum(shards.waited_s for shards in self._sets)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Tell which shards will be read later, by their numbers in the corpus and in their order."""
        for place, one in enumerate(self._sets):
            one.prefetch([self._corpus.shard_paths[shard].name for shard in shards if self._set_of[shard] == place])

    def expect(self, entries: Sequence[IndexEntry]) -> None:
        """Tell what will be read next."""
        for place, shards in enumerate(self._sets):
            own = [entry for entry in entries if self._set_of[entry.shard] == place]
            shards.expect([(self._corpus.shard_paths[entry.shard].name, entry) for entry in own])

    def read(self, entry: IndexEntry) -> tuple[Sample, list[bytes]]:
        """One sample: what it says and its pictures as stored.

        Args:
            entry: as the corpus gives it.
        Raises:
            ShardError: its bytes are not those that were written, or not a sample, or are not there.
            ReadError: the shards cannot be read at all.
        """
        path = self._corpus.shard_paths[entry.shard]
        try:
            return parse_sample(self._content(entry), entry, path)
        except ShardError:
            again = self._sets[self._set_of[entry.shard]].read_again(path.name, entry)
            if again is None:
                raise
        return parse_sample(again, entry, path)

    def _content(self, entry: IndexEntry) -> bytes:
        path = self._corpus.shard_paths[entry.shard]
        shards = self._sets[self._set_of[entry.shard]]
        try:
            return shards.read(path.name, entry)
        except Gone as error:
            raise ShardError(path, entry.key, entry.offset, str(error)) from error

    def texts(self, entries: Iterable[IndexEntry]) -> Iterator[bytes | ShardError]:
        """The JSON of samples as it stands in the shards, unchecked, in the order given; an error where one is gone.

        Raises:
            ReadError: the shards cannot be read at all.
        """
        waiting = iter(entries)
        while some := list(islice(waiting, TEXTS_AT_ONCE)):
            parts = [replace(entry, offset=entry.members[0].offset, length=entry.members[0].size) for entry in some]
            self.expect(parts)
            for part in parts:
                try:
                    yield self._content(part)
                except ShardError as error:
                    yield error

    def take_events(self) -> list[Event]:
        """What happened since the last call that a person should know of."""
        return self._patience.take_events()

    def close(self) -> None:
        """Close all shards."""
        for shards in self._sets:
            shards.close()
