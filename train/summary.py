"""The table that closes the quickstart: what was built, how good it is, where it lies, what to run next."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.manifest import Manifest

NEXT = """\
Next, on real GPUs:
  python -m data.build --preset burberry --source hf:DBQ/Burberry.Product.prices.United.States --output shards
  deepspeed --hostfile launch/hosts train/main.py          # the published model, all of it, ZeRO-3
  deepspeed train/main.py --config train/configs/lora_8x80gb.yaml
One's own catalogue: docs/own-data.md; several nodes and Slurm: docs/clusters.md"""


def shown(score: dict[str, Any] | None, unit: str = "percent") -> str:
    """A score with its 95 % interval, as per cent or as it is."""
    if score is None or score["value"] is None:
        return "–"
    times, form, sign = (100, ".1f", " %") if unit == "percent" else (1, ".3g", "")
    ends = [f"{times * score[end]:{form}}" if score[end] is not None else "∞" for end in ("low", "high")]
    return f"{times * score['value']:{form}}{sign} ({ends[0]}–{ends[1]})"


def print_summary(folder: Path, console: Console, seconds: float) -> None:
    """Print the quickstart's outcome; `folder` as given to train.quickstart, `seconds` this call took."""
    run, shards = folder / "quickstart", folder / "quickstart-data/shards"
    scores = json.loads((run / "evaluation/scores.json").read_text())
    manifest = Manifest.load(shards)
    kept = ", ".join(f"{split} {count['samples']:,}" for split, count in sorted(manifest.counts.items()))
    rejected = sum(manifest.rejected.values())
    table = Table(title=f"\n{scores['samples']} products never trained on (95 % intervals)", title_justify="left")
    for name in ("", "trained model", "best that never looks", "pictures shuffled"):
        table.add_column(name, no_wrap=True)
    for score in scores["scores"]:
        never_looks = score["baselines"][0]["score"] if score["baselines"] else None
        shuffled = next((rival["score"] for rival in score["controls"] if rival["name"] == "shuffled"), None)
        cells = (shown(one, score["unit"]) for one in (score["score"], never_looks, shuffled))
        table.add_row(score["label"], *cells)
    console.print(table)
    for verdict in scores["verdicts"]:
        console.print(f"  {'✓' if verdict['good'] else '✗'} {verdict['text']}", markup=False, highlight=False)
    answer = (run / "logs/answer.log").read_text().strip().splitlines()
    lines = (
        f"\nShards    {shards}  ({kept}; {rejected} rows set aside, see rejected.jsonl)",
        f"Model     {run}/export",
        f"Report    {run}/report.html",
        f"Answer    {answer[-1] if answer else ''}",
        f"Time      {seconds / 60:.1f} minutes\n",
        NEXT,
    )
    console.print("\n".join(lines), markup=False, highlight=False)
