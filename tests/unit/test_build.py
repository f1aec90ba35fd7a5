"""Builds: the same bytes each time, only what changed is written, every row accounted for, and clear errors."""

import csv
import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.build import build, main
from data.build_options import BuildSettings, parse
from data.index import Index
from data.manifest import Manifest
from data.outcome import Outcome
from data.parts import Part
from data.plan import ShardSize
from data.schema import UserError
from data.shards import iter_samples
from data.verify import main as verify

MAPPING = """
key: id
product: product
pictures: [image]
prompt: "<|image_1|>\\nWhat is it?"
answer: "{title} for {price}"
fields:
  title: {column: title, type: text}
  cost: {column: price, type: number}
chat_template: phi3v
split:
  fractions: {train: 0.7, test: 0.3}
"""


def jpeg(number: int, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32 + number % 5, 24), (number % 256, number // 256, 0)).save(out, "JPEG", **options)
    return out.getvalue()


class Catalogue:
    """A catalogue of 60 rows, ten of which are broken, and its builds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pictures").mkdir(parents=True)
        (folder / "mapping.yaml").write_text(MAPPING)
        self.rows = [
            {
                "id": f"id-{n}",
                "product": f"p{n % 40}",
                "image": f"pictures/{n}.jpg",
                "title": f"t <|end|> {n}",
                "price": str(n),
            }
            for n in range(60)
        ]
        for number in range(60):
            (folder / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
        (folder / "pictures" / "3.jpg").unlink()
        (folder / "pictures" / "4.jpg").write_text("<html>")
        exif = Image.Exif()
        exif[0x0112] = 6
        (folder / "pictures" / "5.jpg").write_bytes(jpeg(5, exif=exif))
        self.rows[6]["image"] = ""
        self.rows[7]["price"] = "soon"
        self.rows[48] = self.rows[8] | {"id": "again"}
        self.rows[9]["image"] = "pictures/10.jpg"
        self.save()

    def save(self) -> None:
        with (self.folder / "rows.csv").open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def settings(self, out: str = "out", **changes: Any) -> BuildSettings:
        settings = BuildSettings(
            preset=str(self.folder / "mapping.yaml"),
            source=str(self.folder / "rows.csv"),
            output=self.folder / out,
            workers=0,
            size=ShardSize(samples=10),
            max_rejected=0.2,
        )
        return replace(settings, **changes)

    def build(self, out: str = "out", **changes: Any) -> Outcome:
        return build(self.settings(out, **changes))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "catalogue")


def contents(out: Path) -> dict[str, str]:
    """Every file of a build except downloads/, by its hash."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] != "downloads"
    }


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in contents(out)}


def test_every_row_is_in_a_shard_or_rejected_once(catalogue: Catalogue) -> None:
    out = catalogue.folder / "out"
    catalogue.build()
    manifest = Manifest.load(out)
    samples = [sample for split in manifest.shards for sample, _ in iter_samples(out, split)]
    kept = [sample.source["row"] for sample in samples]
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted(kept + [one["row"] for one in rejected]) == list(range(60))
    assert [(one["row"], one["stage"], one["reason"]) for one in rejected] == [
        (3, "fetch", "missing-file"),
        (4, "fetch", "not-a-picture"),
        (6, "fetch", "no-picture"),
        (7, "map", "bad-number"),
        (48, "split", "duplicate"),
    ]
    assert manifest.rejected == {
        "bad-number": 1,
        "duplicate": 1,
        "missing-file": 1,
        "no-picture": 1,
        "not-a-picture": 1,
    }
    assert len({sample.key for sample in samples}) == len(samples) == 55
    assert manifest.answer_template == "{title} for {cost}"
    assert manifest.question == "<|image_1|>\nWhat is it?"
    assert manifest.fields == {"title": "text", "cost": "number"}
    assert sum(counts["samples"] for counts in manifest.counts.values()) == 55
    assert verify([str(out)]) == 0


def test_products_and_pictures_never_stand_on_both_sides(catalogue: Catalogue) -> None:
    catalogue.build()
    sides: dict[str, str] = {}
    for split in ("train", "test"):
        for sample, (picture,) in iter_samples(catalogue.folder / "out", split):
            columns = sample.source["columns"]
            for mark in (columns["product"], hashlib.sha256(picture).hexdigest()):
                assert sides.setdefault(mark, split) == split


def test_a_sample_holds_what_its_row_says_and_its_picture(catalogue: Catalogue) -> None:
    catalogue.build()
    out = catalogue.folder / "out"
    found = {sample.key: (sample, data) for split in ("train", "test") for sample, data in iter_samples(out, split)}
    sample, (picture,) = found["id-11"]
    assert sample.messages[1]["content"] == "t <|end|> 11 for 11.0"
    assert sample.target == {"title": "t <|end|> 11", "cost": 11.0}
    assert sample.source == {"row": 11, "columns": catalogue.rows[11]}
    assert picture == jpeg(11)
    upright = Image.open(io.BytesIO(found["id-5"][1][0]))
    assert upright.size == (24, 32)


def test_building_twice_gives_the_same_bytes(catalogue: Catalogue) -> None:
    catalogue.build("a")
    shutil.copytree(catalogue.folder / "pictures", catalogue.folder / "moved" / "pictures")
    catalogue.build("b", workers=1, image_root=str(catalogue.folder / "moved"))
    assert contents(catalogue.folder / "a") == contents(catalogue.folder / "b")
    assert {"manifest.json", "rejected.jsonl", "train/index.arrow", "train/shard-000000.tar"} <= set(
        contents(catalogue.folder / "a")
    )


def test_a_whole_folder_is_left_as_it_is(catalogue: Catalogue) -> None:
    assert catalogue.build().changed
    before = times(catalogue.folder / "out")
    outcome = catalogue.build()
    assert (outcome.changed, outcome.shards_written) == (False, 0)
    assert times(catalogue.folder / "out") == before


def test_only_the_shards_of_changed_rows_are_written_again(catalogue: Catalogue) -> None:
    catalogue.build()
    out = catalogue.folder / "out"
    before, old = contents(out), times(out)
    catalogue.rows[11]["title"] = "another"
    catalogue.save()
    outcome = catalogue.build()
    after = contents(out)
    changed = {name for name in after if after[name] != before.get(name)}
    assert outcome.shards_written == 1
    assert sorted(Path(name).name.partition("-")[0] for name in changed) == ["index.arrow", "manifest.json", "shard"]
    assert {name for name, time in times(out).items() if time == old[name]} >= set(after) - changed - {"rejected.jsonl"}
    fresh = catalogue.build("fresh")
    assert fresh.changed
    assert contents(catalogue.folder / "fresh") == after


def test_a_mended_picture_is_taken_in(catalogue: Catalogue) -> None:
    catalogue.build()
    (catalogue.folder / "pictures" / "4.jpg").write_bytes(jpeg(4))
    catalogue.build()
    catalogue.build("fresh")
    assert contents(catalogue.folder / "out") == contents(catalogue.folder / "fresh")


def test_rows_that_are_added_make_new_shards_and_touch_none(catalogue: Catalogue) -> None:
    rows, out = catalogue.rows, catalogue.folder / "out"
    before: dict[str, int] = {}
    for end in (33, 51, 60):
        catalogue.rows = rows[:end]
        catalogue.save()
        assert catalogue.build().shards_written > 0
        tars = {name: time for name, time in times(out).items() if name.endswith(".tar")}
        assert before.items() < tars.items()
        before = tars
    assert Manifest.load(out).build["breaks"] == [33, 51]
    assert verify([str(out)]) == 0
    assert not catalogue.build().changed
    catalogue.build("out", size=ShardSize(samples=11))
    assert Manifest.load(out).build["breaks"] == []


def test_an_added_row_that_is_lost_to_a_kill_keeps_the_old_shards(catalogue: Catalogue) -> None:
    rows, out = catalogue.rows, catalogue.folder / "out"
    catalogue.rows = rows[:33]
    catalogue.save()
    catalogue.build()
    before = times(out)
    catalogue.rows = rows
    catalogue.save()
    catalogue.build(steps=("fetch",))
    catalogue.build(steps=("split",))
    (out / "downloads" / "plan" / "plan.json").unlink()  # as if killed before the plan was whole
    catalogue.build()
    assert {name: time for name, time in before.items() if name.endswith(".tar")}.items() < times(out).items()


def test_what_killed_builds_left_half_written_is_removed(catalogue: Catalogue) -> None:
    out = catalogue.folder / "out"
    catalogue.build()
    before = contents(out)
    folders = (out, out / "train", *(out / "downloads" / name for name in ("ledger", "plan", "shards/train")))
    for folder in folders:
        (folder / ".name.1234.part").write_bytes(b"half")
    assert catalogue.build().changed is False
    assert not list(out.rglob(".*.part"))
    assert contents(out) == before


def test_machines_that_divide_the_steps_make_the_same(catalogue: Catalogue) -> None:
    catalogue.build("whole", size=ShardSize(samples=5))
    size, shares = ShardSize(samples=5), [Part(number, 3) for number in (2, 3, 1)]
    for share in shares:
        with pytest.raises(UserError, match=rf"--part .*{shares[-1].number}/3" if share.number != 2 else "no finished"):
            catalogue.build(join=share.number != 2, steps=("split",), size=size)
        catalogue.build(part=share, steps=("fetch",), size=size)
    catalogue.build(join=True, steps=("split",), size=size)
    for share in shares:
        assert catalogue.build(part=share, steps=("write",), size=size).shards_written > 0
        assert not (catalogue.folder / "out" / "manifest.json").exists()
    assert catalogue.build(join=True, steps=("split", "write"), size=size).shards_written == 0
    assert contents(catalogue.folder / "out") == contents(catalogue.folder / "whole")


def test_a_shorter_catalogue_leaves_nothing_of_the_longer(catalogue: Catalogue) -> None:
    catalogue.build()
    catalogue.build(limit=30)
    catalogue.build("fresh", limit=30)
    assert contents(catalogue.folder / "out") == contents(catalogue.folder / "fresh")


@pytest.mark.parametrize("name", ["train/shard-000001.tar", "manifest.json", "train/index.arrow", "rejected.jsonl"])
def test_a_file_that_is_gone_is_made_again(catalogue: Catalogue, name: str) -> None:
    catalogue.build()
    out = catalogue.folder / "out"
    before = contents(out)
    (out / name).unlink()
    assert catalogue.build().changed
    assert contents(out) == before


def test_a_picture_changed_between_the_steps_is_noticed_and_taken_up_next_time(catalogue: Catalogue) -> None:
    catalogue.build(steps=("fetch",))
    catalogue.build(steps=("split",))
    (catalogue.folder / "pictures" / "20.jpg").write_bytes(jpeg(200))
    with pytest.raises(UserError, match=r"20\.jpg was changed after it was checked"):
        catalogue.build(steps=("write",))
    assert not (catalogue.folder / "out" / "manifest.json").exists()
    catalogue.build()
    catalogue.build("fresh")
    assert contents(catalogue.folder / "out") == contents(catalogue.folder / "fresh")


def test_the_steps_one_by_one_make_the_same(catalogue: Catalogue) -> None:
    catalogue.build("whole")
    for step in ("fetch", "split", "write"):
        catalogue.build(steps=(step,), source=catalogue.settings().source if step == "fetch" else None)
    assert contents(catalogue.folder / "out") == contents(catalogue.folder / "whole")


def test_a_step_without_the_one_before_says_so(catalogue: Catalogue) -> None:
    with pytest.raises(UserError, match="--only fetch first"):
        catalogue.build(steps=("split",))
    catalogue.build(steps=("fetch",))
    with pytest.raises(UserError, match="--only split first"):
        catalogue.build(steps=("write",))
    catalogue.build(steps=("split",))
    with pytest.raises(UserError, match="--only split first"):
        catalogue.build(steps=("write",), size=ShardSize(samples=7))


def test_too_many_rejected_rows_fail_and_keep_what_was_done(catalogue: Catalogue) -> None:
    with pytest.raises(
        UserError, match=r"4 of 60 rows were rejected.* \(6.7%, allowed 5.0%\).*bad-number.*--max-rejected"
    ):
        catalogue.build(max_rejected=0.05)
    out = catalogue.folder / "out"
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 5
    assert not (out / "manifest.json").exists()
    outcome = catalogue.build()
    assert outcome.fetched is not None
    assert outcome.fetched.parts_written == 0
    assert outcome.shards_written > 0


def test_a_second_build_in_the_same_folder_is_refused(catalogue: Catalogue) -> None:
    import fcntl

    (catalogue.folder / "out" / "downloads").mkdir(parents=True)
    with (catalogue.folder / "out" / "downloads" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build is at work"):
            catalogue.build()


def test_verify_names_the_sample_and_the_byte(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.build()
    out = catalogue.folder / "out"
    entry = Index.open(out / "train" / "index.arrow").entry(13)
    with (out / "train" / "shard-000001.tar").open("r+b") as tar:
        tar.seek(entry.members[1].offset + 5)
        tar.write(b"\xaa\xaa\xaa")
    assert verify([str(out)]) == 1
    said = capsys.readouterr().out
    assert f"shard-000001.tar: sample '{entry.key}' at byte {entry.offset:,}" in said
    assert "2 faults" in said
    (out / "train" / "shard-000001.tar").unlink()
    assert verify([str(out)]) == 1
    assert "shard-000001.tar: missing" in capsys.readouterr().out


ERRORS: list[tuple[dict[str, str], str]] = [
    ({"--source": "none.csv"}, "no such catalogue"),
    ({"--source": "empty.csv"}, "is empty"),
    ({"--source": "header.csv"}, "has column names but no rows"),
    ({"--source": "other.csv"}, "has no column 'id', did you mean 'ID'?; its columns: ID, title"),
    ({"--preset": "burbery"}, "did you mean 'burberry'"),
    ({"--preset": "none.yaml"}, "no such mapping"),
    ({"--output": "rows.csv"}, "is a file"),
    ({"--image-root": "none"}, "no such folder"),
    ({"--max-rejected": "0"}, "rows were rejected"),
]


@pytest.mark.parametrize(("changes", "says"), ERRORS)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    catalogue: Catalogue,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    says: str,
) -> None:
    monkeypatch.chdir(catalogue.folder)
    Path("empty.csv").write_text("")
    Path("header.csv").write_text("id,product,image,title,price\n")
    Path("other.csv").write_text("ID,title\n1,2\n")
    options = {"--preset": "mapping.yaml", "--source": "rows.csv", "--output": "out", "--workers": "0"} | changes
    assert main([part for option in options.items() for part in option]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.parametrize(
    "option", [["--limit", "0"], ["--workers", "-1"], ["--max-rejected", "2"], ["--only", "x"], ["--limit", "x"]]
)
def test_options_out_of_range_end_at_once(option: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--preset", "burberry", "--output", "out", *option])


def test_the_report_of_a_build_is_for_a_person(catalogue: Catalogue, capsys: pytest.CaptureFixture[str]) -> None:
    settings = catalogue.settings()
    arguments = ["--preset", settings.preset, "--source", str(settings.source), "--output", str(settings.output)]
    arguments += ["--workers", "0", "--max-rejected", "0.2"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for part in ("kept: train", "kept: test", "rejected: no-picture", "shards written", "rows/s"):
        assert part in said
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
