"""What is written down of benchmarks, and what is said of an earlier record."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from data.schema import UserError
from tests.benchmarks.bench.__main__ import BENCHMARKS
from tests.benchmarks.bench.compare import compare
from tests.benchmarks.bench.plots import svg
from tests.benchmarks.bench.runs import Outcome, Record
from tests.benchmarks.bench.tables import comparison_lines, record_lines
from tests.benchmarks.figures import Figure, counted, of_rounds
from tests.benchmarks.gpu_figures import gpu_figures


def outcome(*figures: Figure, name: str = "loader", arguments: tuple[str, ...] = ()) -> Outcome:
    """A benchmark that ended well on a quiet machine."""
    return Outcome(
        name=name,
        state="done",
        reason=None,
        seconds=1.5,
        arguments=arguments,
        figures=figures,
        load_before=0.1,
        others=0.01,
        steal=0.0,
    )


def record(*outcomes: Outcome, cpu: str = "a processor", torch: str = "2.13.0") -> Record:
    """A record of some benchmarks."""
    return Record(
        begun="2026-01-02T03:04:05+00:00",
        seconds=60.0,
        size="quick",
        machine={"cpu": cpu, "cores": 2, "memory_gib": 8, "gpus": [], "kernel": "6.1"},
        versions={"python": "3.11.2", "torch": torch},
        commit={"hash": "0123abc", "changed": True},
        benchmarks=outcomes,
    )


def rate(*rounds: float, theirs: tuple[float, ...] | None = None) -> Figure:
    """Samples a second in some rounds."""
    return of_rounds("rate", rounds, "samples/s", baseline=("theirs", theirs) if theirs else None)


def verdict(old: Figure, new: Figure) -> str:
    """What is said of a figure then and now, on one machine."""
    (change,) = compare(record(outcome(old)), record(outcome(new))).changes
    return change.verdict


def test_a_figure_has_the_middle_rounds_ratio_and_less_is_better_turns_it() -> None:
    rates = rate(10, 30, 20, theirs=(5, 10, 20))
    assert (rates.value, rates.spread) == (20, (10, 30))
    assert rates.baseline is not None
    assert (rates.baseline.value, rates.baseline.ratio, rates.baseline.spread) == (10, 2.0, (1.0, 3.0))
    taken = of_rounds("time", [1.0, 2.0], "s", higher_is_better=False, limit=("least", [0.5, 1.0]))
    assert taken.limit is not None
    assert taken.limit.ratio == 0.5
    assert counted("theirs", 2.0, 8.0, higher_is_better=False).ratio == 4.0


def test_a_change_is_called_one_where_the_rounds_do_not_overlap() -> None:
    assert verdict(rate(10, 11, 12), rate(11.9, 13, 14)) == "same"
    assert verdict(rate(10, 11, 12), rate(12.1, 13, 14)) == "better"
    assert verdict(rate(10, 11, 12), rate(7, 8, 9)) == "worse"
    assert verdict(rate(10), rate(9.95)) == "same"
    counted_one = Figure(name="rate", value=0.995, unit="samples/s")
    assert verdict(counted_one, replace(counted_one, value=0.9951)) == "same"
    assert verdict(counted_one, replace(counted_one, value=0.98)) == "worse"
    memory = replace(counted_one, higher_is_better=False)
    assert verdict(memory, replace(memory, value=2.0)) == "worse"


def test_a_machine_that_slows_all_alike_is_told_from_a_change_of_ours() -> None:
    then = rate(10, 11, 12, theirs=(5, 5, 5))
    assert verdict(then, rate(5, 5.5, 6, theirs=(2.5, 2.5, 2.5))) == "worse, and so is its baseline"
    assert verdict(then, rate(5, 5.5, 6, theirs=(5, 5, 5))) == "worse"


def test_nothing_is_called_worse_on_another_machine_or_with_other_arguments() -> None:
    then, now = outcome(rate(10)), outcome(rate(5))
    found = compare(record(then), record(now, cpu="another"))
    assert [change.verdict for change in found.changes] == ["another machine"]
    assert found.worse == ()
    assert "cpu: a processor → another" in found.notes[0]
    found = compare(record(then), record(replace(now, arguments=("--rounds", "1"))))
    assert [change.verdict for change in found.changes] == ["other arguments"]


def test_other_versions_and_new_figures_are_said() -> None:
    new = Figure(name="bytes", value=1.0, unit="MB")
    found = compare(record(outcome(rate(10))), record(outcome(rate(5), new), torch="2.14.0"))
    assert [change.verdict for change in found.changes] == ["worse"]
    assert "torch: 2.13.0 → 2.14.0" in found.notes[0]
    assert found.notes[1] == "Not in the earlier file: loader: bytes"
    assert "| **worse** |" in "\n".join(comparison_lines(found, "then"))


def test_a_figure_of_a_busy_machine_is_said_to_be_one() -> None:
    busy = replace(outcome(rate(5)), others=0.5)
    (change,) = compare(record(outcome(rate(10))), record(busy)).changes
    assert change.verdict == "worse, on a busy machine"
    assert any("busy machine" in line for line in record_lines(record(busy)))


def test_a_record_is_the_same_after_it_went_through_a_file(tmp_path: Path) -> None:
    held = rate(10, 11, theirs=(5, 5)).asking("3× theirs", False)
    skipped = replace(outcome(name="gpu"), state="skipped", reason="there is no GPU here")
    saved = record(outcome(held, Figure(name="fill", value=99.0, unit="%", limit=counted("all", 99, 100))), skipped)
    saved.save(tmp_path / "benchmarks.json")
    assert Record.load(tmp_path / "benchmarks.json") == saved
    text = "\n".join(record_lines(saved))
    assert "| 5 theirs | 2.10×" in text
    assert "3× theirs | **falls short** |" in text
    assert "99.0%" in text
    assert "skipped: there is no GPU here" in text


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "benchmarks": [{}]}'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "earlier.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"earlier\.json"):
        Record.load(path)


def test_the_plot_is_whole_and_has_a_bar_for_each_ratio() -> None:
    awkward = replace(rate(1, 2, 3, theirs=(4, 4, 4)), name="<rate> & more", limit=counted("least", 1, 3))
    root = ET.fromstring(svg(record(outcome(awkward, rate(5)))))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["bad", "good"]
    assert "<rate> & more: 0.5× of theirs" in [bar[0].text for bar in bars]


def test_a_gpu_is_held_against_the_published_way_and_its_measured_rate() -> None:
    case = {"way": "packs", "tokens": 4096, "crops": 4, "samples": 5, "pictures": 5, "operations": 3e14}
    found = {
        "method": "full",
        "matrix_rate": 6e14,
        "cases": [
            case | {"seconds": 1.0, "rounds": [0.8, 1.0, 1.25], "peak_gib": 60.0, "computed_gib": 66.0},
            case | {"tokens": 131072, "failed": "out of memory", "peak_gib": 139.0},
            case | {"way": "published", "seconds": 2.5, "rounds": [2.5]},
        ],
    }
    rate, memory = gpu_figures(found)
    assert rate.name == "full, packs of 4,096 tokens, 4 crops"
    assert (rate.value, rate.spread, rate.holds) == (5.0, (4.0, 6.25), True)
    assert rate.baseline is not None
    assert rate.limit is not None
    assert (rate.baseline.ratio, rate.limit.ratio) == (2.5, 0.5)
    assert (memory.value, memory.higher_is_better) == (60.0, False)


def test_every_benchmark_of_the_folder_is_known(root: Path) -> None:
    files = [path for path in (root / "tests" / "benchmarks").glob("*.py") if "def measure(" in path.read_text()]
    assert {path.stem for path in files} == {benchmark.name for benchmark in BENCHMARKS}
