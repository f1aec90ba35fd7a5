"""Ask a model about pictures, about every row of a table, or about every sample of a split.

    python -m train.predict MODEL picture.jpg … [--question "…"]
    python -m train.predict MODEL catalogue.csv [--column picture] [--question "…"] [--output predictions.jsonl]
    python -m train.predict MODEL SHARDS [--split test] [--output predictions.jsonl] [--control shuffled]
    torchrun --nproc_per_node 8 train/predict.py MODEL …        the same file, on many devices

MODEL: a run's folder, an exported or other model folder, or a hub name that is in the local cache.
The same command goes on with what was ended before its time, on as many devices as there are then.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os

# Read when torch is loaded: threads that spin while they wait make a small model four times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from transformers.utils import logging as transformers_logging

from data.images import PictureError, open_picture
from data.manifest import file_sha256
from data.schema import IMAGE_TAG, UserError
from data.sources import open_source
from data.tables import table_kind
from train.answering import Answerer
from train.checkpoint import fingerprint_model
from train.distributed import World, bring_together, end_at_once, find_place, part
from train.loading import Loaded, choose_device, load_run
from train.predicting import each_answer, precision_of, predict_all, predict_into
from train.questions import CONTROLS, PictureQuestions, QuestionError, Questions, SplitQuestions, TableQuestions
from train.score.fields import AnswerParser, Prediction, each_prediction
from train.score.split import Split


def predict_split(
    loaded: Loaded,
    split: Split,
    *,
    control: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 96,
    limit: int | None = None,
) -> list[Prediction]:
    """Answer the samples of a split, in the split's order, by this process alone and in memory.

    control: see SplitQuestions. limit: only the first so many samples.
    Raises UserError for damaged samples.
    """
    answerer = Answerer(loaded.model, loaded.processor, split.manifest.chat_template["template"], max_new_tokens)
    return predict_all(SplitQuestions(answerer, split, control, batch_size, limit), answerer)


def predict_split_into(
    output: Path,
    loaded: Loaded,
    split: Split,
    world: World,
    *,
    control: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 96,
    limit: int | None = None,
) -> bool:
    """The same on all ranks, into a file that is whole or not there; whether an ended start was gone on from."""
    answerer = Answerer(loaded.model, loaded.processor, split.manifest.chat_template["template"], max_new_tokens)
    questions = world.agree(lambda: SplitQuestions(answerer, split, control, batch_size, limit))
    return predict_into(output, questions, answerer, world, asks_of(loaded, answerer))


def asks_of(loaded: Loaded, answerer: Answerer) -> dict[str, Any]:
    """What predictions depend on beside the questions."""
    trained = file_sha256(loaded.origin.checkpoint / "manifest.json") if loaded.origin else None
    return {"base": fingerprint_model(loaded.folder), "checkpoint": trained, **precision_of(answerer)}


def read_picture(path: Path) -> Image.Image:
    """A picture file, upright; raises QuestionError for what is none."""
    try:
        return open_picture(path.read_bytes())
    except OSError as error:
        raise QuestionError(f"{path}: {error.strerror}; name picture files, a table, or a folder of shards") from error
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
    content = question_for(loaded, question)
    for picture in pictures:
        yield answerer.answer([answerer.prompt([{"role": "user", "content": content}], [picture])])[0].text


def question_for(loaded: Loaded, question: str | None) -> str:
    """The user's message for one picture; raises QuestionError where none is given and none was trained with."""
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


def quiet() -> None:
    """Keep transformers' remarks and bars out of the output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def gather_ranks() -> World:
    """The ranks that a launcher started, or this process alone, which then needs no DeepSpeed."""
    place = find_place(dict(os.environ))
    if place.world_size == 1:
        return World(place=place, device=choose_device(), group=None)
    if choose_device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    return bring_together(find_place(os.environ), os.environ)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run, model folder, or cached hub name")
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        help="picture files, one table (CSV, TSV, JSONL, Parquet), or a folder of shards",
    )
    parser.add_argument("--question", help="asked about each picture (default: the one trained with)")
    parser.add_argument("--column", help="of a table: where the pictures' paths are (default: picture, image, …)")
    parser.add_argument("--key", help="of a table: the column that names a prediction (default: the row's number)")
    parser.add_argument("--checkpoint", default="best", help="of a run: best, newest, or a folder")
    parser.add_argument("--split", help="of the shards (default: test, else validation)")
    parser.add_argument(
        "--output", type=Path, help="file for the predictions (default: predictions[-CONTROL].jsonl; pictures: none)"
    )
    parser.add_argument(
        "--control", choices=CONTROLS, help="of shards: ask about other samples' pictures, white ones, or none"
    )
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--limit", type=positive, help="only the first so many samples or rows")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    quiet()
    return run_on_ranks(lambda world: _run(options, world))


def run_on_ranks(work: Any) -> int:
    """Do `work(world)` on every rank; errors of a person's making are told once, without a traceback."""
    world = None
    try:
        world = gather_ranks()
        work(world)
    except UserError as error:
        if world is None or getattr(error, "tells", world.first):
            print(f"error: {error}", file=sys.stderr, flush=True)
        if world is not None and world.size > 1:
            end_at_once(2)
        return 2
    except BaseException:
        if world is not None and world.size > 1:
            import traceback

            traceback.print_exc()
            end_at_once(1)
        raise
    part()
    return 0


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def _run(options: argparse.Namespace, world: World) -> None:
    inputs: list[Path] = options.inputs
    tables = [path for path in inputs if table_kind(path.name)]
    folders = [path for path in inputs if path.is_dir()]
    if len(inputs) > 1 and (tables or folders):
        raise QuestionError("name picture files, or one table, or one folder of shards, not several of these")
    output: Path | None = options.output
    if folders or tables:
        output = output or Path(f"predictions{f'-{options.control}' if options.control else ''}.jsonl")
    if options.control and not folders:
        raise QuestionError("--control goes with a folder of shards: only there it is known what is true")
    if folders and not (folders[0] / "manifest.json").is_file():
        raise QuestionError(
            f"{folders[0]} is not a finished folder of shards: it has no manifest.json; build one by python -m "
            f"data.build, or name the pictures themselves: {folders[0]}/*"
        )
    split = Split(inputs[0], options.split) if folders else None
    source = open_source(str(inputs[0])) if tables else None
    if split is None and source is None:
        for path in inputs:
            read_picture(path)
    loaded = load_run(options.model, options.checkpoint, device=world.device)
    template = split.manifest.chat_template["template"] if split is not None else None
    answerer = Answerer(loaded.model, loaded.processor, template, options.max_new_tokens)

    def questions() -> Questions:
        if split is not None:
            return SplitQuestions(answerer, split, options.control, options.batch_size, options.limit)
        content = question_for(loaded, options.question)
        parser = AnswerParser(loaded.task.answer_template, loaded.task.fields) if loaded.task.fields else None
        if source is None:
            return PictureQuestions(answerer, inputs, content, parser, options.batch_size)
        return TableQuestions(
            answerer,
            inputs[0],
            source,
            content,
            parser,
            options.batch_size,
            options.limit,
            options.column,
            options.key,
        )

    asked = world.agree(questions)
    if output is None:
        # Pictures are asked in the order in which they were named.
        for _, one in each_answer(asked, answerer) if world.first else ():
            print(one.answer if len(inputs) == 1 else f"{one.key}: {one.answer}", flush=True)
        return
    predict_into(output, asked, answerer, world, asks_of(loaded, answerer))
    if world.first:
        problems = sum(bool(one.problem) for one in each_prediction(output))
        more = f", {problems} of them without an answer (see `problem`)" if problems else ""
        print(f"{asked.count} predictions for {inputs[0]}{f'/{split.name}' if split else ''}: {output}{more}")


if __name__ == "__main__":
    sys.exit(main())
