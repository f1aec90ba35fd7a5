"""What became of every URL, kept at once: whatever interrupts a fetch, what was whole is not asked for again."""

import json
import sqlite3
from pathlib import Path
from time import monotonic

import xxhash

from data.ledger import Found, Lost

COMMIT_AFTER, COMMIT_AFTER_S = 1000, 0.5
_ASK = "SELECT run, outcome FROM urls WHERE hash = ?"
_BYTES = [name for name, kind in Found.__annotations__.items() if kind is bytes]
_TO_JSON = json.JSONEncoder(default=bytes.hex)
_SLOTS = 1 << 24  # as three bytes tell apart; two million URLs mark an eighth


class UrlStore:
    """Outcomes by URL, in a small database.

    The ledger's parts are written when all their rows are done; this remembers each URL at once, also over rows that
    move to other places of the catalogue, and a URL that several rows have. It can be lost: the ledger is what counts.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Open or make the store; one that was made with other settings (`fingerprint`) is begun anew."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(path)
            known = self._database.execute("SELECT value FROM about").fetchone()
        except sqlite3.DatabaseError:  # cut by a power failure
            for leftover in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-journal")):
                leftover.unlink(missing_ok=True)
            self._database, known = _open(path), None
        if known != (fingerprint,):
            with self._database:
                self._database.execute("DELETE FROM urls")
                self._database.execute("DELETE FROM about")
                self._database.execute("INSERT INTO about VALUES (?)", (fingerprint,))
        self._run = 1 + (self._database.execute("SELECT max(run) FROM urls").fetchone()[0] or 0)
        # Nothing is looked up of a URL whose slot has no mark, as of nearly all in a first run. None: all have one.
        self._marks = bytearray(_SLOTS) if self._run == 1 else None
        self._waiting: dict[bytes, tuple[int, str]] = {}
        self._committed = monotonic()

    def get(self, url: str) -> tuple[Found | Lost, bool] | None:
        """What became of a URL, and whether that was found out by this very run; None if it is not known."""
        name = url_hash(url)
        if self._marks is not None and not self._marks[_slot(name)]:
            return None
        row = self._waiting.get(name) or self._database.execute(_ASK, (name,)).fetchone()
        if row is None:
            return None
        values = json.loads(row[1])
        if "sha256" not in values:
            return Lost(**values), row[0] == self._run
        return Found(**values | {name: bytes.fromhex(values[name]) for name in _BYTES}), row[0] == self._run

    def put(self, outcome: Found | Lost) -> None:
        """Remember what became of a URL, for good with the next `commit` (or soon)."""
        record = _TO_JSON.encode(outcome._asdict())
        name = url_hash(outcome.url)
        self._waiting[name] = (self._run, record)
        if self._marks is not None:
            self._marks[_slot(name)] = 1
        if len(self._waiting) >= COMMIT_AFTER or monotonic() - self._committed > COMMIT_AFTER_S:
            self.commit()

    def remove(self, urls: list[str]) -> None:
        """Forget some URLs."""
        self.commit()
        self._database.executemany("DELETE FROM urls WHERE hash = ?", [(url_hash(url),) for url in urls])
        self._database.commit()

    def commit(self) -> None:
        """Have what was put outlive the end of this process, however it comes."""
        if self._waiting:
            rows = [(name, *values) for name, values in self._waiting.items()]
            self._database.executemany("INSERT OR REPLACE INTO urls VALUES (?, ?, ?)", rows)
            self._database.commit()
            self._waiting = {}
        self._committed = monotonic()

    def close(self) -> None:
        """Close the store, all of it kept."""
        self.commit()
        self._database.close()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    # One process at a time (data.build locks the folder), which also spares the shared memory that network file
    # systems lack; not synced, as a power cut costs no more than URLs that are asked for again.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS about (value TEXT)")
    # A table by row numbers, which grows at its end: in one by hashes each row would change a page of its own.
    database.execute("CREATE TABLE IF NOT EXISTS urls (hash BLOB PRIMARY KEY, run INTEGER, outcome TEXT)")
    return database


def _slot(name: bytes) -> int:
    return int.from_bytes(name[:3], "big")


def url_hash(url: str) -> bytes:
    """What a URL is known by, 16 bytes."""
    return xxhash.xxh3_128_digest(url.encode("utf-8", "surrogatepass"))
