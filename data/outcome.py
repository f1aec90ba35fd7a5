"""What a build did."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.fetch import FetchCounts
    from data.manifest import Manifest
    from data.plan import Plan


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a build did."""

    plan: "Plan | None" = None
    manifest: "Manifest | None" = None
    fetched: "FetchCounts | None" = None
    shards_written: int = 0
    uploaded: int = 0
    """Files sent to an output that is far away."""
    changed: bool = False
    """Whether anything in the output folder was written."""
