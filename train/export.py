"""Write a run's model as a folder that from_pretrained reads, adapters merged: `python -m train.export RUN OUT`."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig

from data.schema import UserError
from data.whole import sync
from train.answering import PAD_TOKEN, stop_ids
from train.config import load as load_config
from train.loading import DTYPES, TASK_FILE, Loaded, Task, is_run, load_adapters, load_run
from train.predict import quiet
from train.score.card import model_card
from train.score.facts import Origin, run_facts


class ExportError(UserError):
    """The folder cannot be written as asked."""


def export(run: Path, out: Path, checkpoint: str = "best", dtype: str | None = None, overwrite: bool = False) -> Loaded:
    """Write base weights and what was trained as one model folder; whole or not there.

    run: folder of a training run. out: the folder to be made. checkpoint: see loading.choose_checkpoint.
    dtype: "fp32", "bf16" or "fp16"; None for what the run computed in.
    overwrite: an earlier export at `out` is replaced.
    Returns what was exported. Raises UserError for no run, no whole checkpoint, weights that are not finite, or an
    `out` that is there already.
    """
    _check_places(run, out, overwrite)
    precision = dtype or load_config(run / "config.yaml").model.precision
    loaded = load_run(run, checkpoint, dtype=DTYPES[precision], device=torch.device("cpu"))
    _write_folder(out, lambda folder: _write(loaded, folder, precision))
    return loaded


def export_adapter(run: Path, out: Path, checkpoint: str = "best", overwrite: bool = False) -> Origin:
    """Write a run's adapters alone, as peft saves them (float32); arguments and errors as for `export`.

    Plain `PeftModel.from_pretrained` puts them on the base model, and `tune.lora.adapter` trains on from them.
    Returns where they come from.
    """
    _check_places(run, out, overwrite)
    adapted, origin = load_adapters(run, checkpoint)
    # peft notes the folder it was loaded from, which another machine need not have.
    adapted.peft_config["default"].base_model_name_or_path = origin.config.model.path

    def write(folder: Path) -> None:
        adapted.save_pretrained(folder, save_embedding_layers=False)
        (folder / TASK_FILE).write_text(Task.of(origin.shards).to_json(), encoding="utf-8")

    _write_folder(out, write)
    return origin


def _check_places(run: Path, out: Path, overwrite: bool) -> None:
    if not is_run(run):
        raise ExportError(f"{run} is not the folder of a run: it has no config.yaml; runs are under runs/")
    _check_out(out, overwrite)


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written beside its place, and give it its name once it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(aside)
        aside.chmod(0o755)
        for path in aside.iterdir():
            path.chmod(0o644)
            sync(path)
        sync(aside)
        _put_in_place(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ExportError(f"{out} is there already; name another folder, or give --overwrite")
    if not (out / TASK_FILE).is_file():
        raise ExportError(
            f"{out} is not an exported model (it has no {TASK_FILE}), so it is not overwritten; delete it"
        )


def _write(loaded: Loaded, folder: Path, precision: str) -> None:
    """All files of the model folder."""
    stops = stop_ids(loaded.processor)
    pad = loaded.processor.tokenizer.backend_tokenizer.token_to_id(PAD_TOKEN)
    loaded.model.generation_config = GenerationConfig(
        bos_token_id=loaded.model.config.bos_token_id, eos_token_id=stops, pad_token_id=pad, do_sample=False
    )
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    (folder / TASK_FILE).write_text(loaded.task.to_json(), encoding="utf-8")
    assert loaded.origin is not None
    card = model_card(run_facts(loaded.origin), loaded.task.question, precision)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _put_in_place(aside: Path, out: Path) -> None:
    """Give the finished folder its name; an earlier export leaves first, so that none is ever half old, half new."""
    if out.exists():
        gone = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.rename(gone / out.name)
        aside.rename(out)
        shutil.rmtree(gone)
    else:
        aside.rename(out)
    sync(out.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--checkpoint", default="best", help="best (default), newest, or a folder")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights (default: what the run computed in)")
    parser.add_argument("--adapter", action="store_true", help="write the adapters alone, as peft saves them")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options = parser.parse_args(arguments)
    quiet()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # saving loads DeepSpeed, which would remark on it
    if options.adapter and options.dtype:
        parser.error("--dtype does not go with --adapter: adapters are written in float32, as they were trained")
    try:
        if options.adapter:
            origin = export_adapter(options.run, options.out, options.checkpoint, options.overwrite)
            print(f"{options.out}: the adapters of {origin.checkpoint}; train on from them by")
            print(f"  --set tune.lora.adapter={shlex.quote(str(options.out))}")
            return 0
        loaded = export(options.run, options.out, options.checkpoint, options.dtype, options.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.out.iterdir())
    assert loaded.origin is not None
    print(f"{options.out}: {loaded.origin.checkpoint} as a model folder, {size / 1e6:,.1f} MB; ask it:")
    print(f"  python -m train.predict {shlex.quote(str(options.out))} picture.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
