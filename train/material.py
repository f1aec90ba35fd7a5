"""What training needs at hand before anything is loaded: a model's folder, shards. No torch, no transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.manifest import Manifest
from data.schema import UserError
from train.config_schema import Config
from train.pipeline.opening import Folder
from train.pipeline.remote import default_cache, is_remote, mirror

NEEDED = ("config.json", "preprocessor_config.json", "tokenizer.json")
HUB_TIMEOUT_S = 5.0


class MissingMaterial(UserError):
    """The model or the shards are not there; says how to get each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How a model cuts pictures."""

    num_crops: int
    crop_size: int
    """Pixels a side."""
    tokens_per_side: int


def read_geometry(folder: Path, num_crops: int | None) -> Geometry:
    """What a model folder's preprocessor_config.json says, with `num_crops` over it where that is given."""
    values: dict[str, Any] = json.loads((folder / "preprocessor_config.json").read_text())
    return Geometry(
        num_crops=num_crops or int(values["num_crops"]),
        crop_size=int(values.get("crop_size", 336)),
        tokens_per_side=int(values.get("tokens_per_side", 12)),
    )


def lacks(folder: Path) -> list[str]:
    """What a model folder still needs to be trained from."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    return missing if any(folder.glob("*.safetensors")) else [*missing, "model.safetensors"]


def cached_snapshot(name: str) -> Path | None:
    """The folder of a hub model in the local Hugging Face cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def why_not_from_hub(name: str) -> str | None:
    """Why a model cannot be had from the hub now, asked of it within seconds; None where it can."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        return f"the hub does not give it: {str(error).splitlines()[0]}"
    return None


def download(name: str) -> Path:
    """Fetch a model from the hub into the local cache: weights, configuration, tokenizer, no code."""
    from huggingface_hub import snapshot_download

    print(f"getting {name} from the Hugging Face hub", flush=True)
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))


def find_model(path: str, fetch: bool = False) -> Path | None:
    """The folder of `model.path`: itself, or in the local Hugging Face cache, or else at the hub.

    fetch: download what only the hub has; otherwise such a model is None.
    Raises MissingMaterial, saying how to get one, or what is wrong with the one that is there.
    """
    folder: Path | None = Path(path).expanduser()
    assert folder is not None
    if not folder.is_dir():
        is_name = path.count("/") == 1 and not path.startswith((".", "/", "~"))
        folder = cached_snapshot(path) if is_name else None
        if folder is None or lacks(folder):
            reason = why_not_from_hub(path) if is_name else None
            if not is_name or reason:
                raise MissingMaterial(no_model(path, reason))
            if not fetch:
                return None
            folder = download(path)
    missing = lacks(folder)
    if missing:
        raise MissingMaterial(f"model.path: {folder} lacks {', '.join(missing)}; name a folder in Hugging Face's form")
    check_vocabulary(folder)
    return folder


def check_vocabulary(folder: Path) -> None:
    """Raise MissingMaterial where the tokenizer of a model folder gives ids that the model has no embedding for."""
    size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    ids = pieces.values() if isinstance(pieces, dict) else range(len(pieces))
    largest = max(*ids, *(token["id"] for token in tokenizer["added_tokens"]))
    if size is not None and largest >= size:
        raise MissingMaterial(
            f"model.path: {folder / 'tokenizer.json'} has id {largest}, beyond config.json's vocabulary of {size}; "
            "take files that belong together"
        )


def no_model(path: str, reason: str | None) -> str:
    """How to get the model, in a few lines."""
    if reason is None:
        return (
            f"model.path: no folder {path}\n  name one:   --set model.path=FOLDER (or a name on the Hugging Face hub)"
        )
    return (
        f"model.path: {path} is neither a folder nor in the local Hugging Face cache, and {reason}\n"
        f"  get it:     hf download {path}\n"
        "  or name a folder that has it: --set model.path=FOLDER"
    )


def shards_folder(config: Config, path: str | None = None) -> Path:
    """The folder of a set of shards, of the first of `data.shards` where none is named; of an address, one with its
    manifest and indexes, fetched if they changed."""
    path = path or config.data.shard_sets[0].path
    if not is_remote(path):
        return Path(path)
    return mirror(path, shard_cache(config), 60 * config.data.patience_minutes)


def shard_folders(config: Config, split: str) -> list[Folder]:
    """The sets of `data.shards` that have a split, with their weights."""
    folders = [Folder(path=shards_folder(config, one.path), weight=one.weight) for one in config.data.shard_sets]
    return [one for one in folders if Manifest.load(one.path).shards.get(split)]


def shard_cache(config: Config) -> Path:
    """Where a node keeps shards of an address."""
    return Path(config.data.shard_cache) if config.data.shard_cache else default_cache()


def check_shards(config: Config) -> None:
    """Raise UserError where a set of `data.shards` is not there, of another format version, without the training split,
    or lacks a shard."""
    for one in config.data.shard_sets:
        _check_set(config, shards_folder(config, one.path))


def _check_set(config: Config, folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise MissingMaterial(
            f"data.shards: no shards at {folder}\n"
            f"  build them: python -m data.build --preset burberry --source CATALOGUE.csv --output {folder}\n"
            "  or name a folder that has them: --set data.shards=FOLDER"
        )
    manifest = Manifest.load(folder)
    for split in (config.data.train, config.data.validation):
        if split in manifest.shards:
            manifest.check_shards(folder, split)
    if config.data.train not in manifest.shards:
        raise MissingMaterial(
            f"data.train: {folder} has no split {config.data.train!r}, only {', '.join(sorted(manifest.shards))}"
        )


def check(config: Config, fetch: bool) -> None:
    """Raise MissingMaterial with all that is not at hand.

    fetch: download the model if only the hub has it; one process of a machine does, the others go on and wait for it.
    """
    problems = []
    try:
        find_model(config.model.path, fetch)
    except UserError as error:
        problems.append(str(error))
    try:
        check_shards(config)
    except MissingMaterial as error:
        problems.append(str(error))
    if problems:
        small = "deepspeed train/main.py --config train/configs/quickstart.yaml (after `make quickstart`)"
        raise MissingMaterial("\n".join([*problems, f"  the same on a small scale: {small}"]))


def cache_folder(config: Config) -> Path:
    """Where counted lengths are kept."""
    return Path(config.data.cache) if config.data.cache else Path(config.run.folder) / ".cache"
