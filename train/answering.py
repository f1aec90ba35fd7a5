"""Batched greedy generation: prompts with pictures in, answers that end by themselves out.

Where the model is partitioned (ZeRO-3), every use of a layer gathers it from all ranks: they take every step together,
until the last of them has its answers, and run the vision tower equally often.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.conversation import Conversation
from data.geometry import image_tokens
from data.schema import UserError
from train.distributed import World
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.crops import canvas_crops
from train.model.image_embedding import ImageEmbedding
from train.model.tokens import STOPS

PAD_TOKEN = "<|endoftext|>"


class AnswerError(UserError):
    """The model cannot be asked, or what it computes is not a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An encoded question."""

    input_ids: NDArray[np.int64]
    """[T], −k at the places of picture k."""
    crops: NDArray[np.uint8]
    """[K, 3, c, c], all pictures' own crops."""
    image_sizes: NDArray[np.int64]
    """[N, 2], height and width of each picture's canvas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model said."""

    text: str
    """Up to the stop token, which is left out."""
    logprob: float
    """Natural log, the sum over the chosen tokens, the stop token included."""
    ended: bool
    """Whether a stop token came before the length limit."""


def stop_ids(processor: Phi3VProcessor) -> list[int]:
    """The ids that end an answer, from the folder's own tokenizer; raises AnswerError where one is missing."""
    backend = processor.tokenizer.backend_tokenizer
    ids = {token: backend.token_to_id(token) for token in STOPS}
    missing = [token for token, number in ids.items() if number is None]
    if missing:
        raise AnswerError(f"the model's tokenizer lacks {', '.join(missing)}; it is not one of the Phi-3-vision family")
    return list(ids.values())


class Answerer:
    """Asks one model."""

    def __init__(
        self,
        model: Phi3VForCausalLM,
        processor: Phi3VProcessor,
        template: str | None = None,
        max_new_tokens: int = 96,
        world: World | None = None,
    ) -> None:
        """`template`: jinja in Hugging Face's form; None for the one in the processor.

        world: the ranks that a model is partitioned over; its answers are then asked for on all of them at once.
        """
        template = template or processor.chat_template
        if not template:
            raise AnswerError("the model's folder has no chat_template, so there is no telling how to ask it")
        self.model = model
        self.processor = processor
        self.template = template
        self.stops = stop_ids(processor)
        self.max_new_tokens = max_new_tokens
        self.world = world
        self._backend = processor.tokenizer.backend_tokenizer
        self._pad = self._backend.token_to_id(PAD_TOKEN)
        self._conversation = Conversation(self._backend, template)

    def prompt(self, messages: Sequence[Mapping[str, str]], pictures: Sequence[Image.Image]) -> Prompt:
        """Encode a question as training does; raises UserError where tags and pictures do not match."""
        size, side = self.processor.crop_size, self.processor.tokens_per_side
        cut = [canvas_crops(picture, self.processor.num_crops, size) for picture in pictures]
        tokens = [image_tokens(rows, columns, side) for _, (rows, columns) in cut]
        sizes = [(rows * size, columns * size) for _, (rows, columns) in cut]
        return Prompt(
            input_ids=self._conversation.prompt(messages, tokens),
            crops=np.concatenate([crops for crops, _ in cut]) if cut else np.zeros((0, 3, size, size), np.uint8),
            image_sizes=np.array(sizes, np.int64).reshape(-1, 2),
        )

    def answer_all(self, prompts: Sequence[Prompt], batch_size: int) -> list[Answer]:
        """Answer any number of prompts in batches; on several ranks each its own, in as many calls as the most need."""
        (calls,) = self._most([math.ceil(len(prompts) / batch_size)])
        answers: list[Answer] = []
        for start in range(0, calls * batch_size, batch_size):
            answers += self.answer(prompts[start : start + batch_size])
        return answers

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer a batch of prompts, padded on the left to one length; in their order.

        On several ranks a rank may have none, which keeps step with the others.
        Raises AnswerError where the model's weights give NaN.
        """
        blank = Prompt(
            input_ids=np.array([self._pad], np.int64),
            crops=np.zeros((0, 3, self.processor.crop_size, self.processor.crop_size), np.uint8),
            image_sizes=np.zeros((0, 2), np.int64),
        )
        training = self.model.training
        self.model.eval()
        try:
            tokens, logprobs = self._generate(list(prompts) or [blank])
        finally:
            self.model.train(training)
        rows = list(zip(tokens.cpu().numpy(), logprobs.cpu().numpy(), strict=True))[: len(prompts)]

        def read() -> list[Answer]:
            return [self._read(row, scores) for row, scores in rows]

        return read() if self.world is None else self.world.agree(read)

    def _generate(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest token at every step and its log-probability, each [prompts, steps].

        A row that has ended is padded, and the mask leaves out what it is padded with.
        """
        device = self.model.device
        ids, mask = (torch.from_numpy(array).to(device) for array in self._padded(prompts))
        pictures = self._pictures(prompts, device)
        short_length = self.model.config.original_max_position_embeddings
        stops = torch.tensor(self.stops, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        cache: Any = None
        steps: list[tuple[torch.Tensor, torch.Tensor]] = []
        while True:
            whole = cache is None
            output = self.model(
                input_ids=ids if whole else ids[:, -1:],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **(pictures if whole else {}),
            )
            cache = output.past_key_values
            logprob, token = torch.log_softmax(output.logits[:, -1].float(), dim=-1).max(dim=-1)
            token = token.masked_fill(ended, self._pad)
            steps.append((token, logprob))
            ids = torch.cat((ids, token[:, None]), dim=1)
            mask = torch.cat((mask, (~ended).long()[:, None]), dim=1)
            # The step after which a sample is longer than the short RoPE factors reach: its keys were turned by others.
            outgrown = ~ended & (mask.sum(dim=-1) == short_length + 1)
            ended |= torch.isin(token, stops)
            goes_on, anew = self._most([int(not ended.all()), int(outgrown.any())])
            if not goes_on or len(steps) == self.max_new_tokens:
                break
            if anew:
                cache = None
        tokens, logprobs = zip(*steps, strict=True)
        return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        longest = max(len(prompt.input_ids) for prompt in prompts)
        ids = np.full((len(prompts), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, longest - len(prompt.input_ids) :] = 1
        return ids, mask

    def _pictures(self, prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
        """The pictures as the model's arguments, with the calls of the vision tower, as many on every rank."""
        crops = np.concatenate([prompt.crops for prompt in prompts])
        sizes = np.concatenate([prompt.image_sizes for prompt in prompts])
        several = (sizes.prod(axis=1) > self.processor.crop_size**2).sum()
        (chunks,) = self._most([math.ceil((len(crops) + several) / ImageEmbedding.crops_per_chunk)])
        arguments: dict[str, Any] = {"crop_chunks": chunks}
        if len(crops):
            arguments |= {"pixel_values": torch.from_numpy(crops).to(device), "image_sizes": torch.from_numpy(sizes)}
        return arguments

    def _most(self, values: Sequence[int]) -> list[int]:
        """The largest of each value over the ranks."""
        if self.world is None:
            return list(values)
        return [int(max(every)) for every in zip(*self.world.gather_floats(values), strict=True)]

    def _read(self, tokens: NDArray[np.int64], logprobs: NDArray[np.float32]) -> Answer:
        stops = np.flatnonzero(np.isin(tokens, self.stops))
        said = int(stops[0]) if len(stops) else len(tokens)
        logprob = float(logprobs[: said + 1].astype(np.float64).sum())
        if not np.isfinite(logprob):
            raise AnswerError(
                "the model computes NaN: its weights are damaged or its training diverged; take another one"
            )
        text = self._backend.decode(tokens[:said].tolist(), skip_special_tokens=False)
        return Answer(text=text, logprob=logprob, ended=len(stops) > 0)
