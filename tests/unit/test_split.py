"""Groups, splits, duplicates, keys and where shards end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.ledger import PART_ROWS, Found, Ledger, Record
from data.mapped import share_of
from data.mapping_file import make_mapping
from data.plan import Plan, PlanMissing, ShardSize, load_plan, save_plan
from data.rejecting import RejectedRows
from data.schema import Rejected
from data.split import make_plan, unique_keys
from data.taking import DISTANCE

FRACTIONS = {"train": 0.8, "test": 0.2}


def record(row: int, product: str, picture: int, **changes: Any) -> Record:
    found = Found(
        url=f"{picture}.jpg",
        place=f"/{picture}.jpg",
        format="jpg",
        bytes=1000,
        sha256=f"{picture:016x}" * 4,
        phash=0,
        width=4,
        height=3,
        mtime_ns=1,
        attempts=0,
    )
    values = {"product": product, "title": f"t{row}"} | changes
    return Record(row=row, status="ok", stage="", reason="", detail="", values=values, pictures=(found,))


def plan_of(
    folder: Path,
    records: list[Record],
    size: ShardSize | None = None,
    breaks: tuple[int, ...] = (),
    **changes: Any,
) -> tuple[Plan, list[Rejected]]:
    ledger = Ledger(folder)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    parts = -(-len(records) // PART_ROWS)
    for part in range(parts):
        ledger.write(part, records[part * PART_ROWS : (part + 1) * PART_ROWS], "")
    mapping = {
        "key": "product",
        "product": "product",
        "pictures": ["image"],
        "prompt": "<|image_1|>",
        "answer": "{title}",
        "split": {"fractions": FRACTIONS},
    }
    size = size or ShardSize()
    with RejectedRows(folder / "rejected") as found:
        plan = make_plan(
            ledger,
            parts,
            make_mapping(mapping | changes, "test"),
            size or ShardSize(),
            DISTANCE,
            breaks,
            found,
            lambda _: None,
            0,
        )
        lines = [json.loads(line) for line in found.lines()]
    return plan, [Rejected(number=line.pop("row"), **line) for line in lines]


def split_by_row(plan: Plan) -> dict[int, str]:
    return {int(row): split for split, one in plan.splits.items() for row in one.rows}


def test_rows_of_one_product_or_picture_stand_together(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    records = [record(row, f"p{random.integers(400)}", int(random.integers(3000))) for row in range(1200)]
    plan, rejected = plan_of(tmp_path, records)
    assert rejected == []
    splits = split_by_row(plan)
    assert sorted(splits) == list(range(1200))
    for field in (lambda one: one.values["product"], lambda one: one.pictures[0].sha256):
        seen: dict[str, str] = {}
        for one in records:
            if one.row in splits:
                assert seen.setdefault(field(one), splits[one.row]) == splits[one.row]
    kept = [one for one in records if one.row in splits]
    moved = sum(("train" if share_of(one.values["product"]) < 0.8 else "test") != splits[one.row] for one in kept)
    assert plan.leaks_prevented == moved > 0


def test_rows_that_are_added_join_their_group_and_move_none(tmp_path: Path) -> None:
    """Products p0 , p4 and p9 belong to train, p1 to test."""
    old = [record(0, "p0", 0), record(1, "p1", 1), record(2, "p4", 2)]
    before = split_by_row(plan_of(tmp_path / "old", old)[0])
    assert before == {0: "train", 1: "test", 2: "train"}
    added = [
        record(3, "p1", 0),  # the product in test, the picture in train
        record(4, "p9", 1),  # a new product that shows an old picture
        record(5, "p4", 0),  # joins two groups of one split
        record(6, "p9", 3),
    ]
    plan, rejected = plan_of(tmp_path / "new", [*old, *added], breaks=(3,))
    assert split_by_row(plan) == before | {4: "test", 5: "train", 6: "test"}
    assert [(one.number, one.stage, one.reason) for one in rejected] == [(3, "split", "leak")]
    assert rejected[0].detail == (
        "would join groups of different splits: that of row 0 in train, that of row 1 in test"
    )
    assert plan.splits["train"].groups.to_pylist() == ["p0"] * 3
    assert plan.leaks_prevented == 2
    later = record(7, "p0", 3)  # p9 went to test
    again, rejected = plan_of(tmp_path / "again", [*old, *added, later], breaks=(3, 7))
    assert split_by_row(again) == split_by_row(plan)
    assert [one.number for one in rejected] == [3, 7]


def test_a_product_keeps_its_split_in_any_catalogue(tmp_path: Path) -> None:
    few, _ = plan_of(tmp_path / "a", [record(row, f"p{row}", row) for row in range(50)])
    many, _ = plan_of(tmp_path / "b", [record(row, f"p{row}", row) for row in range(900)])
    assert split_by_row(few) == {row: split for row, split in split_by_row(many).items() if row < 50}
    assert 0.77 < len(many.splits["train"].rows) / 900 < 0.83
    assert many.leaks_prevented == 0


def test_a_row_that_is_there_twice_is_kept_once(tmp_path: Path) -> None:
    records = [record(0, "a", 1), record(1, "a", 1, title="t0"), record(2, "a", 2, title="t0"), record(3, "a", 1)]
    plan, rejected = plan_of(tmp_path, records)
    assert [(one.number, one.reason, one.key) for one in rejected] == [(1, "duplicate", "a")]
    assert "row 0" in rejected[0].detail
    assert sorted(split_by_row(plan)) == [0, 2, 3]
    (split,) = plan.splits.values()
    assert split.keys.to_pylist() == ["a", "a~r2", "a~r3"]
    assert split.groups.to_pylist() == ["a"] * 3


def test_keys_are_made_unique_without_touching_the_first() -> None:
    keys = unique_keys(pa.array(["a", "b", "a", "a"], pa.large_string()), np.array([10, 11, 12, 13]))
    assert keys.to_pylist() == ["a", "b", "a~r12", "a~r13"]


def test_a_column_of_the_catalogue_may_decide(tmp_path: Path) -> None:
    records = [record(row, f"p{row % 9}", row, part="train" if row % 3 else "held") for row in range(30)]
    records.append(record(30, "z", 30, part=""))
    plan, rejected = plan_of(tmp_path, records, split={"column": "part"})
    assert split_by_row(plan) == {row: "train" if row % 3 else "held" for row in range(30)}
    assert [(one.number, one.reason) for one in rejected] == [(30, "no-split")]
    assert plan.leaks_prevented == 0
    assert plan.straddling == 0
    mixed = [record(0, "a", 0, part="x"), record(1, "a", 1, part="y"), record(2, "b", 2, part="y")]
    assert plan_of(tmp_path, mixed, split={"column": "part"})[0].straddling == 2


def test_every_row_is_kept_or_rejected_with_its_stage(tmp_path: Path) -> None:
    lost = Record(
        row=1, status="rejected", stage="fetch", reason="empty", detail="d", values={"product": "x"}, pictures=()
    )
    unread = Record(row=2, status="rejected", stage="read", reason="bad-row", detail="d", values={}, pictures=())
    plan, rejected = plan_of(tmp_path, [record(0, "a", 0), lost, unread, record(3, "b", 3, title="")])
    assert [(one.number, one.key, one.stage, one.reason) for one in rejected] == [
        (1, "x", "fetch", "empty"),
        (2, None, "read", "bad-row"),
        (3, "b", "map", "missing"),
    ]
    assert plan.rejected == {"bad-row": 1, "empty": 1, "missing": 1}
    assert plan.rows == 4


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (ShardSize(samples=4), [4, 4, 2]),
        (ShardSize(samples=10), [10]),
        (ShardSize(samples=100, bytes=10_000), [3, 3, 3, 1]),
        (ShardSize(samples=100, bytes=1), [1] * 10),
    ],
)
def test_shards_end_at_their_number_of_samples_or_bytes(tmp_path: Path, size: ShardSize, lengths: list[int]) -> None:
    records = [record(row, f"p{row}", row) for row in range(10)]
    plan, _ = plan_of(tmp_path, records, size, split={"fractions": {"train": 1.0}})
    shards = plan.splits["train"].shards
    assert [shard.last - shard.first for shard in shards] == lengths
    assert [shard.number for shard in shards] == list(range(len(lengths)))


def test_a_break_starts_new_shards(tmp_path: Path) -> None:
    records = [record(row, f"p{row}", row) for row in range(10)]
    plan, _ = plan_of(tmp_path, records, ShardSize(samples=4), (6, 7), split={"fractions": {"train": 1.0}})
    assert [(shard.first, shard.last) for shard in plan.splits["train"].shards] == [(0, 4), (4, 6), (6, 7), (7, 10)]


def test_only_shards_with_changed_rows_change_their_fingerprint(tmp_path: Path) -> None:
    records = [record(row, f"p{row}", row) for row in range(30)]
    size, split = ShardSize(samples=10), {"fractions": {"train": 1.0}}

    def prints(changed: list[Record]) -> list[str]:
        return [shard.fingerprint for shard in plan_of(tmp_path, changed, size, split=split)[0].splits["train"].shards]

    before = prints(records)
    assert prints([*records, record(30, "new", 30)])[:3] == before
    text, picture = records.copy(), records.copy()
    text[15] = record(15, "p15", 15, title="other")
    picture[15] = record(15, "p15", 99)
    for changed in (text, picture):
        after = prints(changed)
        assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_plan_comes_back_for_the_same_settings_alone(tmp_path: Path) -> None:
    plan, _ = plan_of(tmp_path, [record(row, f"p{row}", row) for row in range(30)])
    save_plan(tmp_path / "plan", plan, "settings")
    loaded = load_plan(tmp_path / "plan", "settings")
    assert split_by_row(loaded) == split_by_row(plan)
    assert loaded.splits["train"].shards == plan.splits["train"].shards
    with pytest.raises(PlanMissing, match="another preset"):
        load_plan(tmp_path / "plan", "others")
    with pytest.raises(PlanMissing, match="no finished plan"):
        load_plan(tmp_path / "none", "settings")
