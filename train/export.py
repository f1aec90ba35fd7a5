"""Write a run's model as a folder that from_pretrained reads, adapters merged: `python -m train.export RUN OUT`."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import errno
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig

from data.images import open_picture
from data.manifest import Manifest as ShardManifest
from data.manifest import file_sha256
from data.schema import UserError
from data.whole import sync
from train.adapter_files import write_adapter
from train.answering import PAD_TOKEN, stop_ids
from train.config import load as load_config
from train.loading import DTYPES, TASK_FILE, ModelError, Task, is_run, load_run, processor_of, trained_from
from train.material import shards_folder
from train.merging import MergedWeights, write_weights
from train.model import Phi3VConfig
from train.model.processing import PREPROCESSOR
from train.model.standalone import AUTO_MAP, PROCESSOR_MAP, model_code
from train.predict import quiet
from train.score.card import model_card
from train.score.facts import Origin, run_facts
from train.score.split import Split

# Of logits, in the types that weights are written in: the same sums in another order.
CLOSE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}


class ExportError(UserError):
    """The folder cannot be written as asked."""


CONFIG_ASIDE = "config.json.part"
"""The configuration until the folder has its name: without config.json nothing loads it."""
HASHES = "SHA256SUMS"


def export(run: Path, out: Path, checkpoint: str = "best", dtype: str | None = None, overwrite: bool = False) -> Origin:
    """Write base weights and what was trained as one model folder that needs nothing of this project to load.

    run: folder of a training run. out: the folder to be made. checkpoint: see loading.choose_checkpoint.
    dtype: "fp32", "bf16" or "fp16"; None for what the run computed in.
    overwrite: an earlier export at `out` is replaced.
    Weights are written tensor by tensor. The folder loads once it is whole, and not before.
    Returns what was exported. Raises UserError for no run, no whole checkpoint, weights that are not finite, or an
    `out` that is there already.
    """
    _check_places(run, out, overwrite)
    config, chosen, base = trained_from(run, checkpoint)
    shards = ShardManifest.load(shards_folder(config))
    origin = Origin(run=run, checkpoint=chosen, config=config, shards=shards)
    precision = dtype or config.model.precision
    try:
        weights = MergedWeights(base, chosen, config)
    except ValueError as error:
        raise ExportError(str(error)) from error
    _write_folder(out, lambda folder: _write(folder, weights, origin, base, precision))
    return origin


def export_adapter(
    run: Path, out: Path, checkpoint: str = "best", overwrite: bool = False, split: bool = False
) -> Origin:
    """Write a run's adapters alone, as peft saves them (float32); arguments and errors as for `export`.

    Plain `PeftModel.from_pretrained` puts them on the base model, and `tune.lora.adapter` trains on from them.
    split: see adapter_files.write_adapter. Returns where they come from.
    """
    _check_places(run, out, overwrite)
    config, chosen, base = trained_from(run, checkpoint)
    if config.tune.method == "full":
        raise ModelError(f"{run} was trained in full (tune.method: full), so it has no adapters; export the model")
    origin = Origin(run=run, checkpoint=chosen, config=config, shards=ShardManifest.load(shards_folder(config)))

    def write(folder: Path) -> None:
        write_adapter(folder, chosen, config, base, split)
        (folder / TASK_FILE).write_text(Task.of(origin.shards).to_json(), encoding="utf-8")

    _write_folder(out, write)
    return origin


def check_export(run: Path, out: Path, checkpoint: str = "best", dtype: str | None = None) -> float:
    """The largest difference between the logits of a run and of its exported folder, both loaded whole.

    On the first sample of the shards, with its answer. Raises ExportError where they differ by more than rounding.
    """
    precision = dtype or load_config(run / "config.yaml").model.precision
    kind = DTYPES[precision]
    cpu = torch.device("cpu")
    original, written = load_run(run, checkpoint, kind, cpu), load_run(out, dtype=kind, device=cpu)
    assert original.origin is not None
    split = Split(shards_folder(original.origin.config))
    sample, pictures = split.read(0)
    found = []
    for one in (original, written):
        text = one.processor.apply_chat_template(list(sample.messages))
        opened = [open_picture(data) for data in pictures]
        with torch.inference_mode():
            found.append(one.model(**one.processor(text, images=opened or None, return_tensors="pt")).logits)
    largest = float((found[0] - found[1]).abs().max())
    if not largest <= CLOSE[precision]:
        raise ExportError(
            f"{out}: its logits differ from those of {original.origin.checkpoint} by {largest:.2g}, more than "
            f"{CLOSE[precision]:g}; export it again"
        )
    return largest


def _check_places(run: Path, out: Path, overwrite: bool) -> None:
    if not is_run(run):
        raise ExportError(f"{run} is not the folder of a run: it has no config.yaml; runs are under runs/")
    _check_out(out, overwrite)


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written beside its place, hash it, and give it its name once it is whole."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{out.name}-*.part"):
            shutil.rmtree(left)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".part", dir=out.parent))
    except OSError as error:
        raise ExportError(f"{out}: its folder cannot be written ({error.strerror}); name another place") from error
    try:
        write(aside)
        aside.chmod(0o755)
        _write_hashes(aside)
        for path in aside.iterdir():
            path.chmod(0o644)
            sync(path)
        sync(aside)
        _put_in_place(aside, out)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"{out}: no room is left ({error.strerror}); make some, or name another place") from error
        raise


def _write_hashes(folder: Path) -> None:
    """SHA256SUMS of all files, as `sha256sum --check` reads it."""
    lines = []
    for path in sorted(folder.iterdir()):
        name = path.name.removesuffix(".part")
        lines.append(f"{file_sha256(path)}  {name}\n")
    (folder / HASHES).write_text("".join(lines), encoding="utf-8")


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or (out / CONFIG_ASIDE).exists())):
        return
    if not overwrite:
        raise ExportError(f"{out} is there already; name another folder, or give --overwrite")
    if not (out / TASK_FILE).is_file():
        raise ExportError(
            f"{out} is not an exported model (it has no {TASK_FILE}), so it is not overwritten; delete it"
        )


def _write(folder: Path, weights: MergedWeights, origin: Origin, base: Path, precision: str) -> None:
    """All files of the model folder, its configuration aside."""
    processor = processor_of(origin.config, base, origin.shards)
    stops = stop_ids(processor)
    pad = processor.tokenizer.backend_tokenizer.token_to_id(PAD_TOKEN)
    task = Task.of(origin.shards)
    card = model_card(run_facts(origin), task.question, precision)
    write_weights(folder, weights, DTYPES[precision])
    config = Phi3VConfig.from_pretrained(base)
    config.architectures = ["Phi3VForCausalLM"]
    config.dtype = DTYPES[precision]
    record = json.loads(config.to_json_string()) | {"auto_map": AUTO_MAP}
    (folder / CONFIG_ASIDE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=stops, pad_token_id=pad, do_sample=False
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    text = json.dumps(settings | {"auto_map": PROCESSOR_MAP}, indent=2, ensure_ascii=False)
    (folder / PREPROCESSOR).write_text(text + "\n", encoding="utf-8")
    for name, code in model_code().items():
        (folder / name).write_text(code, encoding="utf-8")
    (folder / TASK_FILE).write_text(task.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _put_in_place(aside: Path, out: Path) -> None:
    """Give the finished folder its name; an earlier export leaves first, so that none is ever half old, half new."""
    gone = None
    if out.exists():
        gone = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", suffix=".part", dir=out.parent))
        out.rename(gone / out.name)
    aside.rename(out)
    if (out / CONFIG_ASIDE).exists():
        (out / CONFIG_ASIDE).rename(out / "config.json")
        sync(out)
    if gone is not None:
        shutil.rmtree(gone)
    sync(out.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--checkpoint", default="best", help="best (default), newest, or a folder")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (default: what the run computed in)")
    parser.add_argument("--adapter", action="store_true", help="write the adapters alone, as peft saves them")
    parser.add_argument(
        "--split-fused", action="store_true", help="with --adapter: as for layers named q_proj, k_proj, v_proj, …"
    )
    parser.add_argument("--check", action="store_true", help="then load run and folder, and compare their logits")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options = parser.parse_args(arguments)
    quiet()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # saving loads DeepSpeed, which would remark on it
    if options.adapter and (options.dtype or options.check):
        parser.error("--dtype and --check do not go with --adapter: adapters are written in float32, as trained")
    if options.split_fused and not options.adapter:
        parser.error("--split-fused goes with --adapter alone")
    try:
        if options.adapter:
            origin = export_adapter(
                options.run, options.out, options.checkpoint, options.overwrite, options.split_fused
            )
            print(f"{options.out}: the adapters of {origin.checkpoint}")
            if not options.split_fused:
                print(f"train on from them by --set tune.lora.adapter={shlex.quote(str(options.out))}")
            return 0
        origin = export(options.run, options.out, options.checkpoint, options.dtype, options.overwrite)
        size = sum(path.stat().st_size for path in options.out.iterdir())
        print(f"{options.out}: {origin.checkpoint} as a model folder, {size / 1e6:,.1f} MB; ask it:")
        print(f"  python -m train.predict {shlex.quote(str(options.out))} picture.jpg")
        if options.check:
            largest = check_export(options.run, options.out, options.checkpoint, options.dtype)
            print(f"checked: its logits are the run's, the largest difference is {largest:.2g}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
