"""The first URLs as a probe: a build whose downloads mostly fail ends at once, and says what would help."""

from collections import Counter

from data.failures import counted, remedies
from data.ledger import Lost
from data.schema import UserError

PROBED = 200


class ProbeFailed(UserError):
    """Most of the first URLs gave no picture; `urls` are those, to be tried again by the next run."""

    def __init__(self, message: str, urls: list[str]) -> None:
        super().__init__(message)
        self.urls = urls


class Probe:
    """Watches the first URLs of a run."""

    def __init__(self, wanted: bool) -> None:
        self._left = PROBED if wanted else 0
        self._lost: list[Lost] = []

    def enter(self) -> bool:
        """Whether the next URL is one of the probe."""
        self._left -= 1
        return self._left >= 0

    def failed(self, lost: Lost) -> None:
        """Take note that a URL of the probe failed. Raises ProbeFailed as soon as most have."""
        self._lost.append(lost)
        failed = len(self._lost)
        if failed <= PROBED // 2:
            return
        classes = Counter(one.reason for one in self._lost)
        hosts = Counter(one.host for one in self._lost if one.reason == "refused-address")
        advice = remedies(classes)
        if hosts:
            advice = advice.replace("--allow-host HOST", f"--allow-host {hosts.most_common(1)[0][0]}")
        raise ProbeFailed(
            f"{failed} of the first {PROBED} URLs failed: {counted(classes)} (the last: {lost.detail[:300]}). "
            f"{advice}. --no-probe goes on in any case; what was fetched is kept",
            [one.url for one in self._lost],
        )
