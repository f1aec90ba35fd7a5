"""Sitting out failures that pass: the same call again, ever more slowly, until it answers or patience is at its end."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from data.schema import UserError
from train.pipeline.events import Event, say

Result = TypeVar("Result")

LONGEST_PAUSE_S = 15.0
SAID_EVERY_S = 30.0


class ReadError(UserError):
    """Shards cannot be read at all, by now or for good."""


class Patience:
    """How long is waited, and a record of what was waited for. Threads may share one."""

    def __init__(self, limit_s: float, first_pause_s: float = 0.5) -> None:
        """
        Args:
            limit_s: seconds that one call may fail on end.
            first_pause_s: seconds to the second try; each further pause is twice as long, 15 s at most.
        """
        self.limit_s = limit_s
        self._first_pause_s = first_pause_s
        self._random = random.Random()
        self._lock = threading.Lock()
        self._said_at = -SAID_EVERY_S
        self._events: list[Event] = []

    def call(
        self, action: Callable[[], Result], *, kind: str, where: str, passes: Callable[[Exception], bool]
    ) -> Result:
        """What `action` gives, tried again while it raises what may pass.

        Args:
            kind, where: for the record, see Event.
            passes: whether such an error may be gone at a later try; others are raised as they are.
        Raises:
            ReadError: it failed for longer than the limit.
        """
        begun = time.monotonic()
        pause, tries = self._first_pause_s, 1
        said = ""
        while True:
            try:
                result = action()
            except Exception as error:
                if not passes(error):
                    if said:
                        self.note(kind, where, f"{said}; at try {tries}: {describe(error)}")
                    raise
                said = describe(error)
                waited = time.monotonic() - begun
                if waited >= self.limit_s:
                    raise ReadError(
                        f"{where}: {said}, {tries} times in {waited:.0f} s; see to the storage or the network, then "
                        "start the run again, it goes on (data.patience_minutes is how long this is sat out)"
                    ) from error
                self._complain(f"{where}: {said} for {waited:.0f} s; waiting for it", waited)
                # Processes that failed together do not come again together.
                time.sleep(min(pause * (0.5 + self._random.random()), self.limit_s - waited))
                pause, tries = min(2 * pause, LONGEST_PAUSE_S), tries + 1
                continue
            if said:
                waited = time.monotonic() - begun
                self.note(kind, where, f"{said}; answered at try {tries}, after {waited:.1f} s")
            return result

    def note(self, kind: str, where: str, what: str) -> None:
        """Record an event."""
        with self._lock:
            self._events.append(Event(event=kind, where=where, what=what))

    def take_events(self) -> list[Event]:
        """What was recorded since the last call."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def _complain(self, text: str, waited: float) -> None:
        """Say that something is waited for: not for a moment's failure, and now and then for a long one."""
        with self._lock:
            now = time.monotonic()
            if waited < 2 or now - self._said_at < SAID_EVERY_S:
                return
            self._said_at = now
        say(f"data: {text}")


def describe(error: Exception) -> str:
    """An error on one line."""
    status = getattr(error, "status", None)
    text = str(getattr(error, "strerror", None) or getattr(error, "message", None) or error) or type(error).__name__
    return f"{status} {text}" if isinstance(status, int) else text
