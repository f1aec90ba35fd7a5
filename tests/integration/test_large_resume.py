"""A plan of very many samples is gone on with in little memory, from what an earlier start counted."""

from pathlib import Path

import pytest

from tests.benchmarks.resume import resume_apart
from tests.factories.large_index import large_index


@pytest.mark.parametrize(
    ("samples", "limit_mb"),
    [(200_000, 120), pytest.param(10_000_000, 500, marks=[pytest.mark.soak, pytest.mark.timeout(5400)])],
)
def test_a_late_step_of_a_large_plan_is_found_again_in_little_memory(
    tmp_path: Path, samples: int, limit_mb: int
) -> None:
    large_index(tmp_path, samples)
    first = resume_apart(tmp_path)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    again = resume_apart(tmp_path)
    assert len(kept) == 1 + 4  # lengths, and the packs of four epochs
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == kept
    assert again["step"] == first["step"] > 0
    assert again["digest"] == first["digest"]
    assert again["peak_mb"] < limit_mb
    print(f"{samples:,} samples: {again['seconds']:.1f} s ({again['cpu_s']:.1f} s of CPU), {again['peak_mb']:.0f} MB")
