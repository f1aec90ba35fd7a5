"""Questions to predictions: batches dealt to the ranks, prompts prepared ahead, answers kept as they come."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from train.answering import Answer, Answerer, Prompt
from train.distributed import World
from train.journal import Journal
from train.questions import Asked, Questions
from train.score.fields import Prediction

BATCHES_AHEAD = 2
# Batches of a rank between two looks at whether the others are well.
ROUND = 8

Numbered = tuple[int, list[int]]


def predict_into(output: Path, questions: Questions, answerer: Answerer, world: World, asks: dict[str, Any]) -> bool:
    """Write predictions.jsonl, going on from what an earlier start of the same job has answered.

    asks: what the predictions depend on beside the questions: the model, its precision, the length of answers.
    Returns whether an earlier start was gone on from. Raises, on every rank, what one of them raises.
    """
    journal = Journal(output, {"questions": questions.spec, **asks})

    def begin() -> set[int]:
        journal.hold()
        return journal.done()

    try:
        done = world.from_first(begin)
        if done and world.first:
            print(f"{output}: going on, {len(done)} batches are answered", flush=True)
        _answer_rest(journal, done, questions, answerer, world)
        world.from_first(lambda: journal.finish(batch_numbers(questions)))
    finally:
        journal.close()
    return bool(done)


def _answer_rest(journal: Journal, done: set[int], questions: Questions, answerer: Answerer, world: World) -> None:
    """Put the batches that are left into the journal, each rank its own."""

    def mine() -> Iterator[Numbered | None]:
        """This rank's batches that are left, None at the end of each round of all ranks."""
        left = (batch for batch in numbered(questions) if batch[0] not in done)
        while turn := list(islice(left, ROUND * world.size)):
            yield from turn[world.rank :: world.size]
            yield None

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (world.first and console.is_terminal)) as progress:
        task = progress.add_task(f"answering {questions.name}", total=questions.count)
        work = answered(mine(), questions, answerer)
        while True:
            try:
                found = next(work, StopIteration)
            except Exception as error:
                world.raise_together(error)
            if found is StopIteration:
                break
            if found is None:
                world.raise_together(None)
                continue
            number, answers = found  # type: ignore[misc]
            try:
                journal.add(number, answers)
            except Exception as error:
                world.raise_together(error)
            progress.advance(task, len(answers) * world.size)


def predict_all(questions: Questions, answerer: Answerer) -> list[Prediction]:
    """All predictions in their order, by this process alone and in memory."""
    return [prediction for _, prediction in sorted(each_answer(questions, answerer), key=lambda one: one[0])]


def each_answer(questions: Questions, answerer: Answerer) -> Iterator[tuple[int, Prediction]]:
    """Samples' numbers and predictions as they are made, batch after batch, by this process alone."""
    for work in answered(numbered(questions), questions, answerer):
        yield from work[1] if work else ()


def numbered(questions: Questions) -> Iterator[Numbered]:
    """All batches with their numbers."""
    numbers = count()
    for window in questions.windows():
        for batch in window:
            yield next(numbers), batch


def batch_numbers(questions: Questions) -> Iterator[list[int]]:
    """The numbers of the batches, window after window."""
    numbers = count()
    for window in questions.windows():
        yield [next(numbers) for _ in window]


def answered(
    batches: Iterable[Numbered | None], questions: Questions, answerer: Answerer
) -> Iterator[tuple[int, list[tuple[int, Prediction]]] | None]:
    """Each batch's number with its samples' numbers and predictions; None where None is given."""
    for work in _prepared(batches, questions.take):
        if work is None:
            yield None
            continue
        number, samples, asked = work
        prompts = [one.prompt for one in asked if one.prompt is not None]
        ask = ask_once if questions.repeats else Answerer.answer
        answers = iter(ask(answerer, prompts) if prompts else [])
        yield (
            number,
            [
                (sample, predicted(questions, one, next(answers) if one.prompt is not None else None))
                for sample, one in zip(samples, asked, strict=True)
            ],
        )


def predicted(questions: Questions, asked: Asked, answer: Answer | None) -> Prediction:
    """What is written of one sample."""
    text = "" if answer is None else answer.text
    fields = {} if questions.parser is None else questions.parser.parse(text)
    logprob = 0.0 if answer is None else answer.logprob
    return Prediction(key=asked.key, answer=text, fields=fields, logprob=logprob, problem=asked.problem)


def ask_once(answerer: Answerer, prompts: Sequence[Prompt]) -> list[Answer]:
    """The answers to prompts of which many are the same, each asked once."""
    digests = []
    for prompt in prompts:
        digest = hashlib.sha256(prompt.input_ids.tobytes())
        digest.update(prompt.image_sizes.tobytes())
        digest.update(prompt.crops.tobytes())
        digests.append(digest.digest())
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    chosen = sorted(first.values())
    answers = answerer.answer([prompts[place] for place in chosen])
    by_digest = {digests[place]: answer for place, answer in zip(chosen, answers, strict=True)}
    return [by_digest[digest] for digest in digests]


def _prepared(
    batches: Iterable[Numbered | None], take: Callable[[Sequence[int]], list[Callable[[], Asked]]]
) -> Iterator[tuple[int, list[int], list[Asked]] | None]:
    """Batches with their prompts, read and cut by threads while the model answers earlier ones."""
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        ahead: deque[tuple[int, list[int], list[Future[Asked]]] | None] = deque()
        waiting = iter(batches)
        over = False
        while True:
            while not over and sum(one is not None for one in ahead) < BATCHES_AHEAD:
                following = next(waiting, StopIteration)
                if following is StopIteration:
                    over = True
                elif following is None:
                    ahead.append(None)
                else:
                    number, samples = following  # type: ignore[misc]
                    ahead.append((number, samples, [pool.submit(one) for one in take(samples)]))
            if not ahead:
                return
            work = ahead.popleft()
            yield work and (work[0], work[1], [future.result() for future in work[2]])


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def precision_of(answerer: Answerer) -> dict[str, Any]:
    """What of this machine and model decides the last digits of an answer's probability."""
    model = answerer.model
    return {
        "dtype": str(model.dtype),
        "device": model.device.type,
        "torch": torch.__version__,
        "num_crops": answerer.processor.num_crops,
        "max_new_tokens": answerer.max_new_tokens,
        "template": answerer.template,
    }
