"""Options and fixtures every test may use; the only place that names the shared reference material."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# phi3v/ (goldens, tokenizer) and clothing/ (photographs); every command that needs it takes --material.
MATERIAL = ROOT.parent / "shared"

# Two cores and many small processes: one thread each is quickest and keeps sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--material",
        type=Path,
        default=MATERIAL,
        help="folder of the reference material: phi3v/ (goldens, tokenizer) and clothing/ (photographs)",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout, from which commands are run."""
    return ROOT


@pytest.fixture(scope="session")
def material(request: pytest.FixtureRequest) -> Path:
    """The folder of reference material; a test that asks for it is skipped where there is none."""
    folder: Path = request.config.getoption("--material")
    if not (folder / "phi3v").is_dir():
        pytest.skip(f"no reference material at {folder}; name it by --material")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the large counts unless they are asked for by `-m soak`."""
    if "soak" in (config.getoption("-m") or ""):
        return
    skip = pytest.mark.skip(reason="large counts: run `make soak`")
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(skip)
