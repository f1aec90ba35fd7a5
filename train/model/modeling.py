"""Phi-3-vision for transformers 5 with its output head: logits, loss and generation."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.loading_report import LoadStateDictInfo

from train.model.attention import SETTINGS, Segments
from train.model.backbone import Phi3VModel, Phi3VPreTrainedModel
from train.model.configuration import Phi3VConfig
from train.model.head import LabelHead
from train.model.partitioned import is_partitioned, keep_unfilled, load_slices
from train.model.pictures import read_pictures
from train.model.recompute import checkpoint_to_host
from train.model.transfer import moved
from train.model.weights import check_folder, check_loading


@dataclass(kw_only=True)
class Phi3VOutput(CausalLMOutputWithPast):
    """transformers' output and, with labels, how many of them the loss was taken over."""

    label_tokens: Tensor | None = None


class Phi3VForCausalLM(Phi3VPreTrainedModel, GenerationMixin):
    """Phi-3-vision and Phi-3.5-vision with their output head: logits, loss and generation."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = LabelHead(config.hidden_size, config.vocab_size, bias=False)
        self.model.freeze_unused()
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a folder or hub name in the published layout, as anywhere in transformers.

        `attn_implementation`: "flash", "sdpa" or "eager"; None or "auto" for sdpa. What the file's own configuration
        says of attention and of remote code is not followed.
        Raises weights.CheckpointError (a ValueError) for missing, unexpected or misshapen tensors, with their names,
        for a truncated file and for a checkpoint of another family.
        """
        # The Auto classes have put the caller's choice into the configuration that they hand on.
        given = kwargs.get("config")
        chosen = getattr(given, "_attn_implementation", None)
        attention = kwargs.pop("attn_implementation", None) or chosen or "auto"
        attention = {"auto": "sdpa", "flash_attention_2": "flash"}.get(attention, attention)
        if attention not in SETTINGS:
            raise ValueError(f"attn_implementation: {attention!r} is not one of {', '.join(SETTINGS)}")
        kwargs["attn_implementation"] = "eager" if attention == "eager" else "sdpa"
        wants_info = kwargs.pop("output_loading_info", False)
        check_folder(pretrained_model_name_or_path, kwargs)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        check_loading(pretrained_model_name_or_path, info)
        model.model.set_attention(attention)
        model.model.freeze_unused()
        return loaded if wants_info else model

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        """The contexts that from_pretrained builds the model in."""
        contexts: list[Any] = super().get_init_context(*args, **kwargs)
        keep_unfilled(contexts)
        return contexts

    @staticmethod
    def _load_pretrained_model(
        model: "Phi3VForCausalLM", state_dict: Any, checkpoint_files: list[str] | None, load_config: Any, *args: Any
    ) -> tuple[LoadStateDictInfo, Any]:
        """transformers' own loading, but for a partitioned model, whose whole weights rank 0 would hold meanwhile."""
        if state_dict is not None or not checkpoint_files or not is_partitioned(model):
            loaded: Any = PreTrainedModel._load_pretrained_model(
                model, state_dict, checkpoint_files, load_config, *args
            )
            return loaded
        load_slices(model, [Path(file) for file in checkpoint_files])
        nothing: tuple[set[Any], ...] = (set(), set(), set())
        return LoadStateDictInfo(*nothing, error_msgs=[], conversion_errors={}, skipped_pp_keys=set()), None

    def set_attn_implementation(self, attn_implementation: str, allow_all_kernels: bool = False) -> None:
        """Change the attention of a built model: "flash", "sdpa" or "eager"."""
        self.model.set_attention(attn_implementation)

    def set_checkpointing(self, *, decoder: bool, vision: bool, offload: bool = False) -> None:
        """Recompute activations in the backward pass, layer by layer, in the decoder, in the tower, in both or none.

        offload: keep the layers' inputs, from which they are recomputed, in the host's memory.
        """
        if decoder or vision:
            self.activation_checkpointing_enable({"use_reentrant": False})
            # transformers has embeddings and crops ask for a gradient, as only reentrant checkpointing needs: a frozen
            # tower would be kept for a backward pass, and run through one, that gives nothing.
            self.disable_input_require_grads()
        else:
            self.activation_checkpointing_disable()
        tower = self.model.vision_embed_tokens.img_processor.vision_model
        for layers, wanted in ((self.model.layers, decoder), (tower.encoder.layers, vision)):
            for layer in layers:
                layer.gradient_checkpointing = wanted
                if offload:
                    layer._gradient_checkpointing_func = checkpoint_to_host

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        crop_chunks: int | None = None,
        label_chunks: int | None = None,
        loss_reduction: str = "mean",
        return_logits: bool = True,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> Phi3VOutput:
        """One batch, or one pack.

        Arguments:
            input_ids: int64 [B, T]; −k at every position of the sample's picture k. Left as they are. Ids and labels
                may lie in the host's memory while the model is on a GPU: what has to be read out of them then costs no
                wait for it.
            attention_mask: [B, past + T], 0 at padding on either side.
            labels: int64 [B, T], −100 where there is none; position t holds its own token, the shift is made here and
                never crosses from one sample of a pack into the next.
            pixel_values: bytes [K, 3, c, c], the pictures' own crops; or as published, float32 or bytes
                [N, K, 3, c, c] with the global view first. image_sizes: int64 [N, 2], padded height and width.
            cu_seqlens: [S + 1], makes a pack of the one row there is: attention, positions and RoPE branch by sample.
            crop_chunks: the exact number of calls of the vision tower, also without pictures; None for as many as
                needed. label_chunks: pieces in which the loss is taken.
            loss_reduction: "mean" over the labels, or "sum", whose division is the caller's.
            return_logits: False builds no logits, for training.
        Returns logits float32 [B, T, vocabulary], loss float32 scalar, label_tokens int64 scalar, cache.
        Raises ValueError for ids beyond the vocabulary, pictures that do not match the ids, sizes that are no canvas.
        """
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"loss_reduction: {loss_reduction!r} is neither 'mean' nor 'sum'")
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("forward needs either input_ids or inputs_embeds")
        segments = None
        if cu_seqlens is not None:
            if given.shape[0] != 1 or attention_mask is not None or past_key_values is not None:
                raise ValueError("cu_seqlens: a pack is one row, without attention_mask and without a cache")
            segments = Segments.of(cu_seqlens, given.shape[1], self.device)
        if input_ids is not None and given.shape[1] > 1:
            self._check_ids(input_ids, pixel_values is not None)
        caching = self.config.use_cache and not self.training and labels is None if use_cache is None else use_cache
        hidden, states, cache = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            # The configuration builds the tower's anew each time it is asked, which a step of an answer would feel.
            pictures=read_pictures(pixel_values, image_sizes, self.model.vision_embed_tokens.crop_size, self.device),
            segments=segments,
            crop_chunks=crop_chunks,
            use_cache=caching and segments is None,
            output_hidden_states=bool(output_hidden_states),
        )
        loss = count = None
        if labels is not None:
            total, count = self._summed_loss(hidden, labels, segments, label_chunks)
            loss = total if loss_reduction == "sum" else total / count.clamp(min=1)
        logits = None
        if return_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept]).float()
        return Phi3VOutput(loss=loss, logits=logits, past_key_values=cache, hidden_states=states, label_tokens=count)

    def _check_ids(self, input_ids: Tensor, has_pictures: bool) -> None:
        largest, smallest = int(input_ids.max()), int(input_ids.min())
        if largest >= self.vocab_size:
            raise ValueError(
                f"input_ids: id {largest} is beyond the vocabulary of {self.vocab_size}; "
                "were they made with this model's tokenizer?"
            )
        if smallest < 0 and not has_pictures:
            raise ValueError(f"input_ids: picture {-smallest} is spoken of, and no pixel_values are given")

    def _summed_loss(
        self, hidden: Tensor, labels: Tensor, segments: Segments | None, chunks: int | None
    ) -> tuple[Tensor, Tensor]:
        # Position t is to tell token t + 1; the last of a row, or of a sample, has nothing to tell.
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        for end in segments.bounds[1:-1] if segments is not None else ():
            targets[:, end - 1] = -100
        where = (targets.flatten() != -100).nonzero()[:, 0]
        targets = targets.flatten()[where]
        if len(targets):
            smallest, largest = (int(bound) for bound in targets.aminmax())
            if smallest < 0 or largest >= self.vocab_size:
                raise ValueError(
                    f"labels: found {smallest if smallest < 0 else largest}; a label is a token id below "
                    f"{self.vocab_size}, or −100 where there is none"
                )
        rows = hidden.flatten(0, 1).index_select(0, moved(where, hidden.device))
        loss = self.lm_head(rows, moved(targets, hidden.device), chunks)
        return loss, torch.full((), len(where), device=hidden.device)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of one step: pictures only where no cache holds them yet.

        A sample that grows past the short RoPE factors makes the cache start again: its keys were turned by others.
        """
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past and self.model.rotary_emb.has_branches:
            present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            limit = self.model.rotary_emb.original_length
            if bool(((present[:, :past].sum(dim=-1) <= limit) & (present.sum(dim=-1) > limit)).any()):
                past_key_values, kwargs["next_sequence_length"], past = None, None, 0
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if not past:
            inputs.update(pixel_values=pixel_values, image_sizes=image_sizes)
        return inputs
