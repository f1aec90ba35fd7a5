"""What a run's folder tells about it: what was trained on what, how the loss went, which commands do it again."""

import hashlib
import json
import platform
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from data.manifest import Manifest as ShardManifest
from data.manifest import file_sha256
from train.checkpoint import Manifest
from train.config_schema import Config
from train.score.report import Curve

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "tokenizers", "safetensors", "pillow", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a trained model comes from."""

    run: Path
    checkpoint: Path
    config: Config
    shards: ShardManifest
    """What the run was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A run in words and numbers, for its report and its model card."""

    run: Path
    checkpoint: Path
    step: int
    model: dict[str, str]
    data: dict[str, str]
    splits: dict[str, dict[str, int]]
    rejected: dict[str, int]
    curve: Curve
    config: str
    """YAML text."""
    versions: dict[str, str]
    commands: list[str]
    course: dict[str, str] = field(default_factory=dict)
    """How fast it went and what it took."""
    hashes: dict[str, str] = field(default_factory=dict)
    """What it was made of, by SHA-256."""


def run_facts(origin: Origin) -> Facts:
    """Gather what the run's folder, one of its checkpoints and the shards' manifest say."""
    run, checkpoint, config, shards = origin.run, origin.checkpoint, origin.config, origin.shards
    saved = Manifest.load(checkpoint)
    status = _json(run / "status.json")
    where = shlex.quote(str(run))
    return Facts(
        run=run,
        checkpoint=checkpoint,
        step=saved.step,
        model=_model(config, saved, status),
        data=_data(config, shards),
        splits={name: shards.counts[name] for name in sorted(shards.counts, key=_split_order)},
        rejected=dict(sorted(shards.rejected.items(), key=lambda item: (-item[1], item[0]))),
        curve=read_curve(run / "metrics.jsonl"),
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        versions=_versions(saved),
        commands=[
            f"deepspeed train/main.py --config {where}/config.yaml --run {run.name}-again",
            f"python -m train.evaluate {where}",
            f"python -m train.export {where} {where}/export",
        ],
        course=read_course(run / "metrics.jsonl"),
        hashes={
            "checkpoint": file_sha256(checkpoint / "manifest.json"),
            "base model": saved.base["fingerprint"],
            "order of training": saved.plan,
            "shards": hashlib.sha256(json.dumps(shards.shards, sort_keys=True).encode()).hexdigest(),
        },
    )


def read_curve(path: Path) -> Curve:
    """Losses and learning rates of metrics.jsonl; lines that were cut off or are of another kind are passed over."""
    points: dict[str, list[tuple[float, float]]] = {"train": [], "validation": [], "lr": []}
    for record in _records(path):
        kind = record.get("kind")
        if kind in ("train", "validation") and record.get("loss") is not None:
            points[kind].append((record["step"], record["loss"]))
        if kind == "train":
            points["lr"].append((record["step"], record["lr"]))
    return Curve(train_loss=points["train"], validation_loss=points["validation"], lr=points["lr"])


def read_course(path: Path) -> dict[str, str]:
    """Throughput and memory of metrics.jsonl, in words; nothing where it says nothing of them."""
    times = [record["time"] for record in _records(path) if record.get("kind") == "train" and "time" in record]
    if not times:
        return {}
    hours = sum(one["step_s"] for one in times) / 3600
    waited = sum(one["data_wait_s"] for one in times) / max(sum(one["step_s"] for one in times), 1e-9)
    return {
        "training": f"{len(times):,} steps in {f'{hours:.2f} hours' if hours >= 0.5 else f'{60 * hours:.1f} minutes'}",
        "throughput": f"{median(one['tokens_per_s'] for one in times):,.0f} tokens and "
        f"{median(one['pictures_per_s'] for one in times):,.1f} pictures a second (median step)",
        "waiting for data": f"{100 * waited:.1f} % of the time",
        "memory of a rank": f"{max(one['memory_gib'] for one in times):.2f} GiB at most",
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; those that were cut off are passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _model(config: Config, saved: Manifest, status: Mapping[str, Any]) -> dict[str, str]:
    trained = sum(prod(shape) for shape in saved.shapes.values())
    lora = config.tune.lora
    name = {"lora": "LoRA", "qlora": "QLoRA (4-bit base)"}.get(config.tune.method, "")
    kinds = "".join(f", {kind}" for kind, wanted in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if wanted)
    method = f"{name}{kinds}, rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.parts)}"
    if lora.adapter is not None:
        method += f", going on from {lora.adapter}"
    if config.tune.method == "full":
        method = f"full fine-tuning{', frozen: ' + ', '.join(config.tune.freeze) if config.tune.freeze else ''}"
    loss = "" if saved.validation_loss is None else f", validation loss {saved.validation_loss:.4f}"
    optim = config.optim
    rates = "".join(f" ({part} {rate:g})" for part, rate in optim.lr_by_part.items())
    return {
        "started from": config.model.path,
        "method": method,
        "trained": f"{trained:,} parameters in {len(saved.shapes)} tensors",
        "checkpoint": f"step {saved.step}{loss}",
        "batch": f"{config.batch.global_batch_packs} packs of at most {config.data.pack_length:,} tokens",
        "learning rate": f"{optim.lr:g}{rates}, {optim.schedule}, {optim.warmup_steps} steps of warm-up",
        "precision": config.model.precision,
        "ranks": str(saved.world_size),
        "state": f"{status.get('state', 'unknown')} after step {status.get('step', saved.step)}",
    }


def _data(config: Config, shards: ShardManifest) -> dict[str, str]:
    source, mapping = shards.build.get("source"), shards.build.get("mapping") or {}
    lines = {
        "shards": ", ".join(one.path for one in config.data.shard_sets),
        "source": source if isinstance(source, str) else "",
        "origin": str(mapping.get("origin") or ""),
        "licence": str(mapping.get("licence") or ""),
        "question": shards.question or "",
        "answer": shards.answer_template or "",
        "chat template": shards.chat_template["name"],
        "split by": _words(shards.split_rule),
        "leaks prevented": f"{shards.leaks_prevented:,} (rows moved into the split of their like)",
    }
    return {name: text for name, text in lines.items() if text}


def _split_order(name: str) -> tuple[int, str]:
    usual = ("train", "validation", "test")
    return usual.index(name) if name in usual else len(usual), name


def _words(value: Any) -> str:
    """A small nested record as text: "train 0.85, test 0.1"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(value[name])}" for name in sorted(value, key=_split_order))
    return str(value)


def _versions(saved: Manifest) -> dict[str, str]:
    """Of this environment, with what trained where it differs."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            here = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        then = saved.versions.get(package, here)
        versions[package] = here if then == here else f"{here} (trained with {then})"
    return versions


def _json(path: Path) -> dict[str, Any]:
    """A small JSON file, or nothing where it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
