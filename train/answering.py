"""Batched greedy generation: prompts with pictures in, answers that end by themselves out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LogitsProcessor, LogitsProcessorList

from data.conversation import Conversation
from data.geometry import image_tokens
from data.schema import UserError
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.crops import canvas_crops
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


class _ChosenLogprobs(LogitsProcessor):
    """Notes the log-probability of each row's likeliest token, the one that greedy generation takes."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.steps.append(torch.log_softmax(scores.float(), dim=-1).amax(dim=-1))
        return scores


class Answerer:
    """Asks one model."""

    def __init__(
        self, model: Phi3VForCausalLM, processor: Phi3VProcessor, template: str | None = None, max_new_tokens: int = 96
    ) -> None:
        """`template`: jinja in Hugging Face's form; None for the one in the processor."""
        template = template or processor.chat_template
        if not template:
            raise AnswerError("the model's folder has no chat_template, so there is no telling how to ask it")
        self.model = model
        self.processor = processor
        self.stops = stop_ids(processor)
        self.max_new_tokens = max_new_tokens
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

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer a batch of prompts, padded on the left to one length; in their order.

        Raises AnswerError where the model's weights give NaN.
        """
        longest = max(len(prompt.input_ids) for prompt in prompts)
        ids = np.full((len(prompts), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.input_ids) :] = prompt.input_ids
            mask[row, longest - len(prompt.input_ids) :] = 1
        device = self.model.device
        pictures: dict[str, Any] = {}
        if any(len(prompt.crops) for prompt in prompts):
            crops = np.concatenate([prompt.crops for prompt in prompts])
            sizes = np.concatenate([prompt.image_sizes for prompt in prompts])
            pictures = {"pixel_values": torch.from_numpy(crops).to(device), "image_sizes": torch.from_numpy(sizes)}
        chosen = _ChosenLogprobs()
        output = self.model.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            **pictures,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.stops,
            pad_token_id=self._pad,
            logits_processor=LogitsProcessorList([chosen]),
        )
        tokens = output[:, longest:].cpu().numpy()
        logprobs = torch.stack(chosen.steps, dim=1).cpu().numpy()
        return [self._read(row, scores) for row, scores in zip(tokens, logprobs, strict=True)]

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
