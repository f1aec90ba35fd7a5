"""Catalogues of very many rows: memory stays bounded, and a row of many costs no more than one of few."""

import shutil
import sys
from pathlib import Path

import pytest

from data.verify import main as verify
from tests.factories.many_rows import write_catalogue
from tests.factories.memory import Watched, watch

MOST_MEMORY = 500_000_000  # bytes
FEW = 10_000


def built(root: Path, folder: Path, rows: int) -> Watched:
    """Build a catalogue of so many rows. Returns what the build took."""
    arguments = write_catalogue(folder, rows)
    done = watch([sys.executable, "-m", "data.build", *arguments, "--output", str(folder / "out")], root)
    assert done.code == 0, done.said
    print(
        f"{rows:,} rows: {done.seconds:.0f} s, {rows / done.seconds:,.0f} rows/s, {rows / done.cpu_s:,.0f} a second of "
        f"the processor, {done.peak / 1e6:,.0f} MB at most"
    )
    return done


def test_a_build_of_rows_with_tiny_pictures_is_whole_and_bounded(root: Path, tmp_path: Path) -> None:
    assert built(root, tmp_path, 1_500).peak < MOST_MEMORY
    assert verify([str(tmp_path / "out")]) == 0


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_a_build_of_a_million_rows_takes_no_more_memory(root: Path, tmp_path: Path) -> None:
    built(root, tmp_path / "few", FEW)
    shutil.rmtree(tmp_path / "few")
    assert built(root, tmp_path / "many", 1_000_000).peak < MOST_MEMORY
