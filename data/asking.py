"""How other people's servers are asked for pictures: within which limits, how politely, and when once more."""

from dataclasses import dataclass, field

from data.ledger import Lost


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """What one URL may cost, and how much is asked at once."""

    max_bytes: int = 32 << 20
    timeout_s: float = 20.0
    """By the clock, for one attempt: name, connection, redirects and content together."""
    deadline_s: float = 90.0
    """By the clock, for all attempts of a URL and the pauses between them."""
    attempts: int = 4
    backoff_s: float = 1.0
    """Before the second attempt; doubled before each further one, by chance up to half more or less."""
    max_redirects: int = 5
    connections: int = 128
    connections_per_host: int = 16
    per_host_rate: float = 50.0
    """Requests a second; 0 for no bound."""


@dataclass(slots=True)
class Visit:
    """What asking for a URL took; filled in on the way, so that a failure tells it too."""

    host: str = ""
    robots: str = ""
    """allowed | none (no robots.txt) | disallowed | unreachable | noai | ignored; empty if it did not come so far."""
    attempts: int = 0
    """Requests for the picture itself, redirects aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What decides which URLs are asked for; it changes whether there is a picture, never which."""

    limits: DownloadLimits = field(default_factory=DownloadLimits)
    allowed_hosts: frozenset[str] = frozenset()
    """Hosts that may have addresses that are not public."""
    robots: bool = True
    """Whether sites are asked for their robots.txt, and it and X-Robots-Tag are obeyed."""
    probe: bool = True
    """Whether to stop if most of the first URLs fail."""
    retry: frozenset[str] = frozenset()
    """Classes of failure of an earlier run to try again."""

    def again(self, earlier: Lost) -> bool:
        """Whether a URL that failed in an earlier run is asked for once more."""
        if earlier.reason in self.retry:
            return True
        if earlier.reason == "refused-address":
            return earlier.host in self.allowed_hosts
        return earlier.reason in ("robots", "robots-unreachable", "noai") and not self.robots
