"""Ask a model about pictures, or about every sample of a split.

    python -m train.predict MODEL picture.jpg … [--question "…"]
    python -m train.predict MODEL SHARDS [--split test] [--output predictions.jsonl] [--control shuffled]

MODEL: a run's folder, an exported or other model folder, or a hub name that is in the local cache.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os

# Read when torch is loaded: threads that spin while they wait make a small model four times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from data.geometry import grids, image_tokens
from data.images import PictureError, open_picture
from data.schema import IMAGE_TAG, UserError
from train.answering import Answerer, Prompt
from train.loading import Loaded, load_run
from train.score.fields import Prediction, write_predictions
from train.score.split import Split, exchanged_pictures

CONTROLS = ("shuffled",)
BATCHES_AHEAD = 2
# Of prompts in one batch: their cache takes about 10 GB in the published model.
MOST_TOKENS = 24_576


class QuestionError(UserError):
    """There is nothing to ask, or nothing to ask about."""


def predict_split(
    loaded: Loaded,
    split: Split,
    *,
    control: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 96,
    limit: int | None = None,
    seed: int = 0,
) -> list[Prediction]:
    """Answer the samples of a split, in the split's order.

    control: "shuffled": each sample is asked about other samples' pictures.
    limit: only the first so many samples.
    seed: of the shuffling.
    Raises UserError for damaged samples.
    """
    answerer = Answerer(loaded.model, loaded.processor, split.manifest.chat_template["template"], max_new_tokens)
    count = min(len(split), limit or len(split))
    own = [[(number, place) for place in range(split.index.picture_counts[number])] for number in range(count)]
    shown = own
    if control == "shuffled":
        groups = [split.index.entry(number).group or str(number) for number in range(count)]
        shown = exchanged_pictures(split.index.picture_counts[:count], groups, seed)

    def prompt(number: int) -> Prompt:
        sample, pictures = split.read(number)
        if shown is not own:
            pictures = [split.read(other)[1][place] for other, place in shown[number]]
        last = max((place for place, one in enumerate(sample.messages) if one["role"] == "assistant"), default=None)
        return answerer.prompt(sample.messages[:last], [open_picture(data) for data in pictures])

    batches = _batches(loaded, split, shown, batch_size)
    answers: dict[int, Prediction] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"answering {split.name}{f', {control}' if control else ''}", total=count)
        for numbers, prompts in _prepared(batches, prompt):
            for number, answer in zip(numbers, answerer.answer(prompts), strict=True):
                answers[number] = Prediction(
                    key=split.index.entry(number).key,
                    answer=answer.text,
                    fields=split.parser.parse(answer.text),
                    logprob=answer.logprob,
                )
            progress.advance(task, len(numbers))
    return [answers[number] for number in range(count)]


def _batches(
    loaded: Loaded, split: Split, shown: Sequence[Sequence[tuple[int, int]]], batch_size: int
) -> list[list[int]]:
    """The samples' numbers in batches of at most batch_size prompts and MOST_TOKENS tokens.

    Longest first: batches then hold little padding, and one that is too large for the device fails at once.
    """
    processor = loaded.processor
    cut = grids(split.index.picture_sizes, processor.num_crops, processor.crop_size)
    tokens = [image_tokens(int(rows), int(columns), processor.tokens_per_side) for rows, columns in cut]
    starts = split.index.picture_offsets
    # Text is shorter in tokens than in bytes; a guess is enough to sort by.
    lengths = [
        sum(tokens[starts[other] + place] for other, place in pictures) + int(split.index.text_bytes[number]) // 2
        for number, pictures in enumerate(shown)
    ]
    order = sorted(range(len(shown)), key=lambda number: (-lengths[number], number))
    batches = []
    start = 0
    while start < len(order):
        size = max(1, min(batch_size, MOST_TOKENS // max(lengths[order[start]], 1)))
        batches.append(order[start : start + size])
        start += size
    return batches


def _prepared(
    batches: Sequence[list[int]], prompt: Callable[[int], Prompt]
) -> Iterator[tuple[list[int], list[Prompt]]]:
    """Batches with their prompts, read and cut by threads while the model answers earlier ones."""
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        ahead: deque[tuple[list[int], list[Future[Prompt]]]] = deque()
        waiting = iter(batches)
        while True:
            while len(ahead) < BATCHES_AHEAD and (batch := next(waiting, None)) is not None:
                ahead.append((batch, [pool.submit(prompt, number) for number in batch]))
            if not ahead:
                return
            numbers, futures = ahead.popleft()
            yield numbers, [future.result() for future in futures]


def read_picture(path: Path) -> Image.Image:
    """A picture file, upright; raises QuestionError for what is none."""
    try:
        return open_picture(path.read_bytes())
    except OSError as error:
        raise QuestionError(f"{path}: {error.strerror}; name picture files or a folder of shards") from error
    except PictureError as error:
        raise QuestionError(f"{path} is not a picture that can be used: {error}") from error


def predict_pictures(
    loaded: Loaded, pictures: Sequence[Image.Image], question: str | None = None, max_new_tokens: int = 96
) -> Iterator[str]:
    """One answer for each picture.

    question: None for the one the model was trained with; where it has no image tag, the tag is put in front.
    Raises QuestionError where there is no question.
    """
    answerer = Answerer(loaded.model, loaded.processor, None, max_new_tokens)
    content = _question(loaded, question)
    for picture in pictures:
        yield answerer.answer([answerer.prompt([{"role": "user", "content": content}], [picture])])[0].text


def _question(loaded: Loaded, question: str | None) -> str:
    """The user's message for one picture."""
    trained = loaded.task.question
    if question is None:
        if trained is None:
            raise QuestionError(f'{loaded.folder} does not say what it was trained to be asked; give --question "…"')
        return trained
    if IMAGE_TAG.search(question):
        return question
    # As in training: the published way is a line of its own for the tag.
    joint = "" if trained and trained.startswith("<|image_1|>") and not trained.startswith("<|image_1|>\n") else "\n"
    return f"<|image_1|>{joint}{question}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def quiet() -> None:
    """Keep transformers' remarks and bars out of the output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run, model folder, or cached hub name")
    parser.add_argument("inputs", nargs="+", type=Path, help="picture files, or one folder of shards")
    parser.add_argument("--question", help="asked about each picture (default: the one trained with)")
    parser.add_argument("--checkpoint", default="best", help="of a run: best, newest, or a folder")
    parser.add_argument("--split", help="of the shards (default: test, else validation)")
    parser.add_argument(
        "--output", type=Path, help="file for a split's predictions (default: predictions[-CONTROL].jsonl)"
    )
    parser.add_argument("--control", choices=CONTROLS, help="ask about another sample's pictures instead")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--limit", type=positive, help="only the first so many samples")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def _run(options: argparse.Namespace) -> None:
    quiet()
    inputs: list[Path] = options.inputs
    if any(path.is_dir() for path in inputs):
        if len(inputs) > 1:
            raise QuestionError("name picture files, or one folder of shards, not both")
        split = Split(inputs[0], options.split)
        loaded = load_run(options.model, options.checkpoint)
        predictions = predict_split(
            loaded,
            split,
            control=options.control,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            limit=options.limit,
        )
        output = options.output or Path(f"predictions{f'-{options.control}' if options.control else ''}.jsonl")
        write_predictions(output, predictions)
        print(f"{len(predictions)} predictions for {split.shards}/{split.name}: {output}")
        return
    pictures = [read_picture(path) for path in inputs]
    loaded = load_run(options.model, options.checkpoint)
    answers = predict_pictures(loaded, pictures, options.question, options.max_new_tokens)
    for path, answer in zip(inputs, answers, strict=True):
        print(answer if len(inputs) == 1 else f"{path}: {answer}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
