"""How other people's servers are asked for pictures: within which limits, how politely, and when once more."""

from dataclasses import dataclass, field

from data.download import DownloadLimits
from data.ledger import Lost


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
