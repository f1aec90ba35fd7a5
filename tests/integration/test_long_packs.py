"""A pack of one long sample costs memory in proportion to its tokens: nothing in it has a row and a column a token."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Every tensor of some size goes back to the system when it is freed, so that the peak is of what lives together.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"}
# A bool mask of 32,768 × 32,768 alone is 1,024 MB, 32 KB a token; what is measured is about 2 KB (4 with pictures).
BYTES_A_TOKEN = 8192


def peaks(*arguments: str) -> dict[int, int]:
    """Peak bytes by number of tokens, imports and model taken off (see tests/factories/long_pack.py)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.factories.long_pack", *arguments],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(tokens): found for tokens, found in json.loads(done.stdout.splitlines()[-1]).items()}


def assert_linear(found: dict[int, int]) -> None:
    """Twice the tokens take no more than twice the memory, up to 15 %."""
    assert found
    for (tokens, memory), (more_tokens, more_memory) in pairwise(found.items()):
        assert more_memory / memory <= 1.15 * more_tokens / tokens, found
        assert more_memory <= BYTES_A_TOKEN * more_tokens, found


def test_memory_of_a_pack_grows_with_its_tokens() -> None:
    assert_linear(peaks("8192", "32768"))


@pytest.mark.soak
def test_memory_of_a_pack_with_pictures_and_checkpointing_grows_with_its_tokens() -> None:
    assert_linear(peaks("8192", "32768", "--pictures", "--checkpointing"))


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("options", [(), ("--checkpointing",), ("--pictures", "--checkpointing")])
def test_131072_tokens_go_forward_and_backward_in_memory_that_grows_with_them(options: tuple[str, ...]) -> None:
    assert_linear(peaks("16384", "32768", "65536", "131072", *options))
