"""What can be said of a node before it trains: versions, variables, room, files. No torch, nothing of other nodes."""

import hashlib
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from data.manifest import Manifest, file_sha256
from data.schema import UserError
from train.config import ROOT
from train.config_schema import Config
from train.interfaces import nominal_mb_s
from train.material import find_model
from train.pipeline.remote import is_remote

PACKAGES = (
    *("torch", "deepspeed", "transformers", "peft", "numpy", "pillow", "pyarrow", "pydantic"),
    *("safetensors", "simplejpeg", "tokenizers", "xxhash"),
)
# What changes how ranks compute or talk. Not what a launcher sets differently on each node.
VARIABLES = re.compile(
    r"^(NCCL_|GLOO_|TORCH|PYTORCH_|CUDA_|HF_|OMP_|MKL_|DS_|TRITON_|WANDB_MODE|LD_LIBRARY_PATH|PYTHONPATH|TMPDIR)"
)
OF_A_NODE = {"CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
HASHING_S = 5.0
HASHING_BYTES = 2 << 30


def versions() -> dict[str, str]:
    """Python, the packages that decide what is computed, and this program's own files."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"this program": code_hash(ROOT)}


def code_hash(root: Path) -> str:
    """A short hash of the program's files, so that two checkouts can be told apart."""
    total = hashlib.sha256()
    for folder in ("data", "train", "ds_configs"):
        for path in sorted([*(root / folder).rglob("*.py"), *(root / folder).rglob("*.json")]):
            total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def variables() -> dict[str, str]:
    """The variables that matter; of a secret only that it is set."""
    return {
        name: "set" if SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        if VARIABLES.match(name) and name not in OF_A_NODE
    }


def driver() -> str:
    """The version of the GPU driver, empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return asked.stdout.partition("\n")[0].strip()


def existing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def room(path: Path) -> int:
    """Free bytes where `path` is or would be."""
    status = os.statvfs(existing(path))
    return status.f_bavail * status.f_frsize


def memory_available() -> int:
    """Bytes of the host's memory that programs can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def model_hash(config: Config) -> str:
    """A hash of the model folder: small files by their content, weights by name and size."""
    folder = find_model(config.model.path)
    if folder is None:
        return "not in the local cache"
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        what = path.read_bytes() if path.suffix == ".json" else str(path.stat().st_size).encode()
        total.update(path.name.encode() + b"\0" + what)
    return total.hexdigest()[:12]


def check_sample_of_shards(config: Config) -> str:
    """Hash shards drawn at random for some seconds; returns what was looked at. Raises UserError for a wrong one."""
    shards = []
    for one in config.data.shard_sets:
        if is_remote(one.path):
            continue
        manifest = Manifest.load(Path(one.path))
        for split in {config.data.train, config.data.validation} & set(manifest.shards):
            manifest.check_shards(Path(one.path), split)
            shards += [(Path(one.path) / split / shard["name"], shard["sha256"]) for shard in manifest.shards[split]]
    # Drawn by the node's name: other nodes look at other shards.
    random.Random(f"{socket.gethostname()} {time.time_ns()}").shuffle(shards)
    until, seen, count = time.monotonic() + HASHING_S, 0, 0
    for path, sha256 in shards:
        if count and (time.monotonic() > until or seen > HASHING_BYTES):
            break
        if file_sha256(path) != sha256:
            raise UserError(f"{path} has another content than the manifest says; bring it back, or build it again")
        seen, count = seen + path.stat().st_size, count + 1
    return f"{count} of {len(shards)}"


def said(work: Any) -> str:
    """What a check gives, or why it failed."""
    try:
        return str(work())
    except (UserError, OSError) as error:
        return f"error: {error}"


def node_facts(config: Config, run: Path) -> dict[str, Any]:
    """All of it, as plain values."""
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
    return {
        "host": socket.gethostname(),
        "versions": versions(),
        "variables": variables(),
        "driver": driver(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory_available(),
        "room": {str(run): room(run), str(temporary): room(temporary)},
        "temporary": str(temporary),
        "model": said(lambda: model_hash(config)),
        "shards": said(lambda: check_sample_of_shards(config)),
        "interface": interface,
        "nominal_mb_s": nominal_mb_s(interface) if interface else None,
    }
