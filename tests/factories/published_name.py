"""A place where the bare command finds what it names: shards, and a small model under the published hub name."""

from collections.abc import Mapping
from pathlib import Path

from train.model.tiny import Sizes, make

ROOT = Path(__file__).resolve().parents[2]
NAME = "microsoft/Phi-3-vision-128k-instruct"
REVISION = "0" * 40
SIZES = Sizes(
    hidden=64, layers=2, vision_hidden=32, vision_layers=3, crop_size=28, patch_size=7, num_crops=4, vocab=340
)


def link_checkout(folder: Path) -> None:
    """Make `folder` look like the root of the checkout to commands that are started in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("data", "train", "ds_configs", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "launch").mkdir()
    for file in (ROOT / "launch").iterdir():
        if file.name != "hosts":
            (folder / "launch" / file.name).symlink_to(file)


def fill_cache(cache: Path, shards: Path) -> dict[str, str]:
    """Put a small random model into a Hugging Face cache under the published name.

    cache: what HF_HOME shall be. shards: their texts train its tokenizer. Returns the variables that name the cache.
    """
    repository = cache / "hub" / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(REVISION)
    make(repository / "snapshots" / REVISION, shards, SIZES, seed=0)
    return {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def clean_environment(base: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """`base` without what a launcher or the test run itself has put there, and `more` over it."""
    launchers = ("MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "OMP_NUM_THREADS", "DS_ACCELERATOR")
    kept = {name: value for name, value in base.items() if not name.startswith(launchers)}
    return {**kept, "WANDB_MODE": "disabled", **more}
