"""What becomes of every row: the result of the split step, kept in downloads/plan/ for the writers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.schema import UserError
from data.whole import whole_file, write_whole

Ints = NDArray[np.int64]
_AT_ONCE = 1 << 16  # rows that are written at a time


class PlanMissing(UserError):
    """There is no plan of these settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """Where a shard ends: at the first of the two that is reached."""

    samples: int = 1000
    bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """What one shard holds."""

    split: str
    number: int
    first: int
    """Places [first, last) among the split's rows."""
    last: int
    fingerprint: str
    """Of all that its bytes are made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """The rows of one split, in the catalogue's order."""

    rows: Ints
    """Row numbers."""
    keys: pa.Array
    groups: pa.Array
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of every row."""

    rows: int
    splits: dict[str, SplitPlan]
    rejected: dict[str, int]
    """Reason → rows."""
    leaks_prevented: int
    """Rows that by their own product alone would stand in another split than their group."""
    straddling: int
    """Rows whose group stands in several splits because a column of the catalogue decides."""

    breaks: tuple[int, ...] = ()
    """Rows at which new shards start."""

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """Split → its shards' fingerprints."""
        return {split: [shard.fingerprint for shard in plan.shards] for split, plan in self.splits.items()}


def save_plan(folder: Path, plan: Plan, settings: str) -> None:
    """Write a plan; its JSON comes last and makes it whole. `settings`: fingerprint of what it was made from."""
    (folder / "plan.json").unlink(missing_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    for split, one in plan.splits.items():
        table = pa.table({"row": one.rows, "key": one.keys, "group": one.groups})
        with whole_file(folder / f"{split}.parquet") as stream:
            pq.write_table(table, stream, row_group_size=_AT_ONCE)
    record = {
        "settings": settings,
        "rows": plan.rows,
        "rejected": plan.rejected,
        "leaks_prevented": plan.leaks_prevented,
        "straddling": plan.straddling,
        "breaks": plan.breaks,
        "splits": {split: [asdict(shard) for shard in one.shards] for split, one in plan.splits.items()},
    }
    write_whole(folder / "plan.json", json.dumps(record, indent=1).encode())


def load_plan(folder: Path, settings: str) -> Plan:
    """Read a plan. Raises PlanMissing if there is none of these settings."""
    try:
        record = json.loads((folder / "plan.json").read_bytes())
        if record["settings"] != settings:
            raise PlanMissing(
                f"{folder} holds the plan of another preset, catalogue or shard size; run --only split first"
            )
        splits = {}
        for split, shards in record["splits"].items():
            table = pq.read_table(folder / f"{split}.parquet").combine_chunks()
            keys, groups = (table.column(name).combine_chunks() for name in ("key", "group"))
            splits[split] = SplitPlan(
                rows=table.column("row").to_numpy(),
                keys=keys,
                groups=groups,
                shards=tuple(ShardPlan(**shard) for shard in shards),
            )
    except (FileNotFoundError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise PlanMissing(f"{folder} holds no finished plan; run --only split first") from error
    return Plan(
        rows=record["rows"],
        splits=splits,
        rejected=record["rejected"],
        leaks_prevented=record["leaks_prevented"],
        straddling=record["straddling"],
        breaks=tuple(record["breaks"]),
    )
