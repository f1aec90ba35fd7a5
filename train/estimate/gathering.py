"""Which parameters ZeRO-3 has gathered at each moment of a pass: its fetching, prefetching and releasing, replayed.

After DeepSpeed 0.19.8's partitioned_param_coordinator: each module fetches its own parameters and then prefetches up to
a bucket of those that come next, as long as fewer than `max_live_parameters` are there; a parameter is let go unless it
is used again within `max_reuse_distance` parameters. What is fetched together is gathered into one flat buffer, which
stays until all of it has been used, and copied out of it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate


@dataclass(kw_only=True)
class Bundle:
    """Parameters that are gathered by one call."""

    waiting: set[int]
    flat: int
    """Elements of the buffer that they are copied out of; 0 where there is only one and none is needed."""
    copied: bool = False


@dataclass(kw_only=True)
class Gathering:
    """A pass through modules: call `fetch` before each and `release` after it."""

    trace: Sequence[Sequence[int]]
    """Parameters of each module, by number, in the order in which modules run, forward and backward."""
    numels: Sequence[int]
    prefetch: int
    max_live: int
    max_reuse: int
    step: int = 0
    bundles: dict[int, Bundle] = field(default_factory=dict)
    available: set[int] = field(default_factory=set)
    claimed: dict[int, int] = field(default_factory=dict)
    """The last use that prefetching passed over because the parameter was there: it stays till then."""
    live: int = 0
    """Elements gathered or on their way."""
    elements: int = 0
    """Elements in memory, flat buffers included."""

    def __post_init__(self) -> None:
        sums = [sum(self.numels[one] for one in module) for module in self.trace]
        self.passed = [0, *accumulate(sums)]
        self.uses: dict[int, list[int]] = {}
        for place, module in enumerate(self.trace):
            for one in module:
                self.uses.setdefault(one, []).append(place)
        self.queue = [(place, one) for place, module in enumerate(self.trace) for one in module]
        self.next = 0

    def _gather(self, wanted: Sequence[int]) -> None:
        size = sum(self.numels[one] for one in wanted)
        several = len(wanted) > 1
        bundle = Bundle(waiting=set(wanted), flat=size if several else 0, copied=not several)
        for one in wanted:
            self.bundles[one] = bundle
        self.live += size
        self.elements += size

    def fetch(self) -> None:
        """Have the next module's parameters, and some of the following ones on their way."""
        own = self.trace[self.step]
        missing = [one for one in own if one not in self.available and one not in self.bundles]
        if missing:
            self._gather(missing)
        for one in own:
            bundle = self.bundles.pop(one, None)
            if bundle is None:
                continue
            if not bundle.copied:
                bundle.copied = True
                self.elements += bundle.flat
            bundle.waiting.discard(one)
            self.available.add(one)
            if not bundle.waiting:
                self.elements -= bundle.flat
        while self.next < len(self.queue) and self.queue[self.next][0] <= self.step:
            self.next += 1
        room, taken = min(self.max_live - self.live, self.prefetch), 0
        ahead: list[int] = []
        while self.next < len(self.queue) and taken < room:
            place, one = self.queue[self.next]
            self.next += 1
            self.claimed[one] = place
            if one not in self.available and one not in self.bundles and one not in ahead:
                ahead.append(one)
                taken += self.numels[one]
        if ahead:
            self._gather(ahead)
        self.step += 1

    def release(self) -> None:
        """Let go what the module that was fetched last does not share with those that come soon."""
        for one in self.trace[self.step - 1]:
            uses = self.uses[one]
            following = bisect_right(uses, self.step - 1)
            soon = following < len(uses) and self.passed[uses[following]] - self.passed[self.step] < self.max_reuse
            if one in self.available and not soon and self.claimed.get(one, -1) < self.step:
                self.available.discard(one)
                self.live -= self.numels[one]
                self.elements -= self.numels[one]
