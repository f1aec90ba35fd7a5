"""Weights & Biases: online, offline or not at all; its troubles never end a training."""

import json
import netrc
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from train.config_schema import WandbSection
from train.keeping import best_known

BASE = "base model"
"""Name of the model that training started from, among those that an evaluation compares with."""


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether a key for W&B is at hand: WANDB_API_KEY or a line in the netrc file."""
    if environment.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = environment.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError) as error:
            print(f"{path} cannot be read for a W&B key: {error}", flush=True)
    return False


def choose_mode(setting: str, environment: Mapping[str, str]) -> str:
    """online, offline or disabled: the setting, or for `auto` WANDB_MODE, else online where a key is found."""
    if setting != "auto":
        return setting
    named = environment.get("WANDB_MODE", "")
    if named:
        return "disabled" if named == "dryrun" else named
    return "online" if has_key(environment) else "offline"


def gain_over_base(run: Path, checkpoint: str) -> dict[str, dict[str, Any]] | None:
    """How much better than the base model a checkpoint was measured to be: by score, gain with its 95 % interval.

    Returns None where `train.evaluate --base` has not measured that checkpoint.
    """
    path = run / "evaluation/scores.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("checkpoint") != checkpoint:
        return None
    gains = {
        f"{score['field']} {score['metric']}": {**model["gain"], "excludes_zero": model["better"]}
        for score in found["scores"]
        for model in score.get("models", ())
        if model["name"] == BASE
    }
    return gains or None


def said_of(gain: Mapping[str, Mapping[str, Any]] | None) -> str:
    """A gain over the base model in words."""
    if gain is None:
        return "its gain over the base model is not measured"
    shown = [name for name, one in gain.items() if one["excludes_zero"]]
    return f"its gain over the base model excludes zero in {len(shown)} of {len(gain)} scores" + (
        f" ({', '.join(shown)})" if shown else ""
    )


class Tracker:
    """One run's record at W&B, under the same id each time the run goes on. Made on rank 0 alone."""

    def __init__(self, settings: WandbSection, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """
        folder: the run's; W&B's files and the id live there.
        config: what the run is made of, shown beside it.
        """
        self.mode = choose_mode(settings.mode, os.environ)
        self.run: Any = None
        self.folder = folder
        self.artifact_bytes = settings.artifact_gb * 1e9
        if self.mode == "disabled":
            return
        try:
            import wandb

            known = folder / "wandb_id"
            if not known.is_file():
                known.write_text(uuid.uuid4().hex[:8])
            self.run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                tags=settings.tags,
                name=name,
                id=known.read_text().strip(),
                resume="allow",
                dir=folder,
                mode=self.mode,  # type: ignore[arg-type]
                config=dict(config),
                settings=wandb.Settings(
                    silent=True, console="off", x_disable_meta=True, x_stats_sampling_interval=30.0
                ),
            )
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Say once that nothing more is sent."""
        self.run = None
        print(f"W&B is left out from here on: {type(error).__name__}: {error}", flush=True)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Add numbers of a step."""
        if self.run is None:
            return
        try:
            self.run.log(dict(values), step=step)
        except Exception as error:
            self.give_up(error)

    def table(self, step: int, name: str, make: Callable[[], Any]) -> None:
        """Add a wandb.Table of a step."""
        if self.run is None:
            return
        # Its pictures wait in the run's folder to be sent, so that it can be moved and synced from anywhere.
        os.environ.setdefault("WANDB_DATA_DIR", str((self.folder / "wandb").absolute()))
        try:
            self.run.log({name: make()}, step=step)
        except Exception as error:
            self.give_up(error)

    def best_model(self) -> None:
        """Add the best checkpoint, as an artifact of type `model` named after the run."""
        best = best_known(self.folder) if self.run is not None else {}
        checkpoint = self.folder / best.get("checkpoint", "gone")
        if not best or not checkpoint.is_dir():
            return
        try:
            import wandb

            gain = gain_over_base(self.folder, checkpoint.name)
            size = sum(file.stat().st_size for file in checkpoint.iterdir())
            artifact = wandb.Artifact(
                name=f"{self.folder.name}-best",
                type="model",
                description=f"Checkpoint of step {best['step']}: validation loss {best['loss']:.4f}; {said_of(gain)}. "
                "python -m train.export makes a model of it.",
                metadata={
                    "step": best["step"],
                    "validation_loss": best["loss"],
                    "bytes": size,
                    "path": str(checkpoint.absolute()),
                    "gain_over_base": gain,
                    "gain_over_base_in_words": said_of(gain),
                },
            )
            artifact.add_file(str(checkpoint / "manifest.json"))
            for file in sorted(checkpoint.glob("*.safetensors")):
                if size <= self.artifact_bytes:
                    artifact.add_file(str(file))
                else:  # the manifest has the hashes
                    artifact.add_reference(file.absolute().as_uri(), checksum=False)
            with artifact.new_file("gain_over_base.json") as text:
                json.dump(gain, text)
            self.run.log_artifact(artifact, aliases=["best", f"step-{best['step']}"])
        except Exception as error:
            self.give_up(error)

    def finish(self, exit_code: int = 0) -> None:
        """Close the record; offline, say how to send it."""
        if self.run is None:
            return
        try:
            folder = Path(self.run.dir).parent
            self.run.finish(exit_code=exit_code)
            if self.mode == "offline":
                print(f"W&B was offline; to send this run: wandb sync {folder}", flush=True)
        except Exception as error:
            self.give_up(error)
