"""The model card of an exported folder: what it was trained on, what it scored, what it is not for."""

import json
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.score.facts import Facts
from train.score.scores import shown

SCORES_FILE = "scores.json"


class ScoresError(UserError):
    """A file of scores that is none."""


def read_scores(run: Path) -> dict[str, Any]:
    """The newest evaluation of a run, empty where there is none; raises ScoresError for a file that is damaged."""
    file = run / "evaluation" / SCORES_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ScoresError(f"{file} is damaged ({error}); write it anew: python -m train.evaluate {run}") from error
    if not isinstance(found, dict):
        raise ScoresError(f"{file} is damaged (no record); write it anew: python -m train.evaluate {run}")
    return found


def model_card(facts: Facts, question: str | None, precision: str) -> str:
    """README.md of an exported folder, in Markdown.

    facts: of the run. question: what the model was trained to be asked. precision: of the weights' file.
    """
    rows = [f"| {name} | {_cell(text)} |" for name, text in (facts.model | facts.data).items()]
    splits = [f"| {name} | {counts['samples']:,} | {counts['pictures']:,} |" for name, counts in facts.splits.items()]
    adapted = "LoRA" in facts.model.get("method", "")
    rejected = ", ".join(f"{_cell(reason)} {count:,}" for reason, count in facts.rejected.items()) or "none"
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: image-text-to-text",
            "---",
            f"# {facts.run.name}",
            "",
            f"Phi-3-vision, fine-tuned; weights in {precision}{', adapters merged' if adapted else ''}.",
            *([f"It was trained to be asked: {_code(question)}"] if question else []),
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "## Data",
            "",
            "| split | samples | pictures |",
            "|---|---|---|",
            *splits,
            "",
            f"Rows left out, by reason: {rejected}.",
            "",
            "## Scores",
            "",
            *_scores(facts),
            "",
            "## Use",
            "",
            "```python",
            "import torch",
            "from PIL import Image",
            "from transformers import AutoModelForCausalLM, AutoProcessor",
            "",
            'processor = AutoProcessor.from_pretrained("THIS_FOLDER", trust_remote_code=True)',
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", trust_remote_code=True, dtype=torch.bfloat16)',
            'messages = [{"role": "user", "content": "<|image_1|>…"}]',
            "text = processor.apply_chat_template(messages, add_generation_prompt=True)",
            'inputs = processor(text, images=[Image.open("picture.jpg")], return_tensors="pt")',
            "ids = model.generate(**inputs, max_new_tokens=96)",
            'print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
            "```",
            "",
            "The model's code lies beside its weights: transformers 5, torch and Pillow are all it needs. Answers end",
            "at each of the four stop tokens of `generation_config.json`. Loading it in vLLM was not tried.",
            "",
            "## Limits",
            "",
            "It answers in the form it was trained on, also about pictures unlike those, and does not say how sure it",
            "is. The scores hold for pictures like those of the split alone. The licences of the model it started from",
            "and of the data apply.",
            "",
        ]
    )


def _scores(facts: Facts) -> list[str]:
    """A table of the scores, if this very checkpoint was evaluated."""
    found = read_scores(facts.run)
    if found.get("checkpoint") != facts.checkpoint.name:
        return ["Not evaluated; `python -m train.evaluate` measures and writes them."]
    lines = [
        f"On {found['samples']:,} {'sample' if found['samples'] == 1 else 'samples'} of the split {found['split']}, "
        "with 95 % intervals; the baseline is the best",
        "constant answer, chosen on the training rows:",
        "",
        "| score | model | baseline | pictures shuffled |",
        "|---|---|---|---|",
    ]
    for score in found["scores"]:
        rivals = [score["baselines"][:1], [one for one in score["controls"] if one["name"] == "shuffled"]]
        unit = score.get("unit", "percent")
        cells = [_estimate(one[0]["score"], unit) if one else "–" for one in rivals]
        lines.append(f"| {_cell(score['label'])} | {_estimate(score['score'], unit)} | {cells[0]} | {cells[1]} |")
    return [*lines, "", *(f"- {_cell(verdict['text'])}" for verdict in found.get("verdicts", ()))]


def _estimate(estimate: dict[str, float | None], unit: str) -> str:
    value, low, high = (shown(float("inf") if number is None else number, unit) for number in estimate.values())
    return f"{value} ({low} … {high})"


def _cell(text: Any) -> str:
    """Text that stays in its table cell and becomes no markup."""
    line = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>#|" else sign for sign in line)


def _code(text: str) -> str:
    line = " ".join(text.split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"
