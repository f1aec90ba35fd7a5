"""What sites say about being fetched: robots.txt (RFC 9309) and the header X-Robots-Tag."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from data.failures import DownloadError

AGENT = "phi3-vision-tuner"
"""The product token that a robots.txt names us by."""
MAX_ROBOTS_BYTES = 500 * 1024  # what RFC 9309 asks a crawler to read at least
KEPT_BYTES = 16 << 20
FRESH_S = 24 * 3600.0  # RFC 9309, 2.4
NO_TRAINING = frozenset({"noai", "noimageai"})
# Directives of X-Robots-Tag that have a value behind a colon; any other name there is an agent's.
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What asking for a robots.txt gave: its status and text; (0, "") if it redirects without end."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class _Rules:
    verdict: str
    parsed: Protego | None
    refusal: DownloadError | None
    bytes: int
    at: float


class Robots:
    """The robots.txt of every origin, each asked for once a day."""

    def __init__(self, ask: Callable[[URL], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._known: dict[URL, asyncio.Task[_Rules]] = {}
        self._bytes = 0

    async def check(self, url: URL) -> tuple[str, float]:
        """Whether a URL may be fetched.

        Returns: the verdict, allowed (a robots.txt says so) or none (there is no robots.txt), and the seconds between
        two requests that the site asks for (0 if it does not).
        Raises DownloadError: robots if it is disallowed; robots-unreachable if the server failed to say, which
        RFC 9309 takes for a no; dns, refused-address, timeout or connection if the server was not reached.
        """
        rules = await self._rules(url.origin())
        if rules.refusal is not None:
            raise DownloadError(rules.refusal.reason, rules.refusal.detail)
        if rules.parsed is None:
            return rules.verdict, 0.0
        if not rules.parsed.can_fetch(str(url), AGENT):
            raise DownloadError("robots", f"{url.origin()}/robots.txt disallows it")
        return rules.verdict, rules.parsed.crawl_delay(AGENT) or 0.0

    async def _rules(self, origin: URL) -> _Rules:
        task = self._known.get(origin)
        if task is None or (task.done() and task.result().at + FRESH_S < asyncio.get_running_loop().time()):
            task = self._known[origin] = asyncio.ensure_future(self._learn(origin))
        return task.result() if task.done() else await asyncio.shield(task)

    async def _learn(self, origin: URL) -> _Rules:
        verdict, parsed, refusal, size = "none", None, None, 0
        try:
            answer = await self._ask(origin / "robots.txt")
        except DownloadError as error:
            refusal = DownloadError(error.reason, f"robots.txt: {error.detail}")
        else:
            size = len(answer.text)
            if answer.status == 200:
                verdict, parsed = "allowed", Protego.parse(answer.text)
            elif answer.status == 429 or answer.status >= 500:
                refusal = DownloadError(
                    "robots-unreachable", f"{origin}/robots.txt answers {answer.status}, which counts as a no"
                )
        self._forget(size)
        return _Rules(verdict, parsed, refusal, size, asyncio.get_running_loop().time())

    def _forget(self, more: int) -> None:
        """Keep memory bounded over any number of sites: the oldest go first, and would be asked again."""
        self._bytes += more + 1000
        for origin, task in list(self._known.items()):
            if self._bytes <= KEPT_BYTES:
                break
            if task.done():
                self._bytes -= task.result().bytes + 1000
                del self._known[origin]


def forbids_training(headers: Iterable[str]) -> str | None:
    """The directive of X-Robots-Tag headers that asks not to be trained on (noai | noimageai), or None.

    A header may name the agent it is for ("somebot: noai"); one for other agents is not for us.
    """
    for header in headers:
        agent = ""
        for part in header.split(","):
            name, colon, value = part.partition(":")
            directive = name.strip().lower()
            if colon and directive not in _WITH_VALUE:
                agent, directive = directive, value.strip().lower()
            if directive in NO_TRAINING and agent in ("", "*", AGENT):
                return directive
    return None
