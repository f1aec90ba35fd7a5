"""How fast a host is asked: requests at once, a token bucket, pauses it asks for, and when to leave it alone."""

import asyncio
from collections import OrderedDict

from data.failures import DownloadError

KEPT_HOSTS = 20_000
GIVEN_UP_AFTER = 50
BURST_S = 0.25  # of its rate a host may get at once after a pause


class Host:
    """One host's turn-taking."""

    def __init__(self, name: str, at_once: int, rate: float) -> None:
        self.name = name
        self._slots = asyncio.Semaphore(at_once)
        self._interval_s = 1 / rate if rate else 0.0
        self._burst_s = BURST_S if rate else 0.0
        self._next = 0.0
        self._held_until = 0.0
        self._users = 0
        self._failed_in_a_row = 0
        self._last_failure = ""

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by forgetting this host."""
        return not self._users and not self._failed_in_a_row and max(self._next, self._held_until) < _now()

    async def __aenter__(self) -> None:
        """Wait until the host may be asked, and keep one of its connections for the block."""
        self._users += 1
        try:
            await self._slots.acquire()
        except BaseException:
            self._users -= 1
            raise
        try:
            pause = self.reserve()
            while pause > 0:
                await asyncio.sleep(pause)
                pause = self._held_until - _now()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()
        self._users -= 1

    def reserve(self) -> float:
        """Take the next token; returns the seconds until it is there and the host is not held, negative if they are."""
        if not self._interval_s and not self._held_until:
            return 0.0
        now = _now()
        pause = self._held_until - now
        if self._interval_s:
            turn = max(self._next, now - self._burst_s)
            self._next = turn + self._interval_s
            pause = max(pause, turn - now)
        return pause

    def hold(self, seconds: float) -> None:
        """Ask nothing for so long: the host said so."""
        self._held_until = max(self._held_until, _now() + seconds)

    def slow_down(self, interval_s: float) -> None:
        """At least so many seconds between two requests from now on."""
        if interval_s > self._interval_s:
            self._interval_s, self._burst_s = interval_s, min(self._burst_s, interval_s)

    def answered(self) -> None:
        """A URL was answered, whatever the answer."""
        self._failed_in_a_row = 0

    def failed(self, why: str) -> None:
        """A URL had no answer in any of its attempts."""
        self._failed_in_a_row += 1
        self._last_failure = why

    def check(self) -> None:
        """Raise DownloadError (gave-up) if the host does not answer any more, so that the others need not wait."""
        if self._failed_in_a_row >= GIVEN_UP_AFTER:
            raise DownloadError(
                "gave-up",
                f"{self.name} was not asked any more after {self._failed_in_a_row} URLs in a row without an answer, "
                f"the last one: {self._last_failure}",
            )


class Hosts:
    """All hosts of a run."""

    def __init__(self, at_once: int, rate: float) -> None:
        self._at_once = at_once
        self._rate = rate
        self._known: OrderedDict[str, Host] = OrderedDict()

    def of(self, name: str) -> Host:
        """The host of this name."""
        host = self._known.get(name)
        if host is None:
            host = self._known[name] = Host(name, self._at_once, self._rate)
            if len(self._known) > KEPT_HOSTS:
                oldest = next(iter(self._known.values()))
                self._known.pop(oldest.name)
                if not oldest.idle:
                    self._known[oldest.name] = oldest
        return host


def _now() -> float:
    return asyncio.get_running_loop().time()
