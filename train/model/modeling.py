"""Phi-3-vision for transformers 5: decoder layers and CLIP tower of transformers, the rest of the model here."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm

from train.model import weights
from train.model.attention import SETTINGS, Segments, registered_name
from train.model.configuration import Phi3VConfig
from train.model.head import LabelHead
from train.model.image_embedding import ImageEmbedding
from train.model.pictures import Pictures, read_pictures
from train.model.placement import place_pictures
from train.model.rotary import SampleRotary


class Phi3VPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the classes below."""

    config: Phi3VConfig
    config_class = Phi3VConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Phi3DecoderLayer", "CLIPEncoderLayer")
    _skip_keys_device_placement = ("past_key_values",)
    _keys_to_ignore_on_load_unexpected = (r"vision_embed_tokens\.wte\.weight$",)
    _supports_sdpa = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding) and module.weight.numel() == 0:
            return  # partitioned: transformers would index the padding row of an empty tensor
        super()._init_weights(module)


@dataclass(kw_only=True)
class Phi3VOutput(CausalLMOutputWithPast):
    """transformers' output and, with labels, how many of them the loss was taken over."""

    label_tokens: Tensor | None = None


class Phi3VModel(Phi3VPreTrainedModel):
    """Token ids and pictures to the final hidden states."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        # As published: the padding row never gets a gradient.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embed_dropout = nn.Dropout(config.embd_pdrop)
        self.vision_embed_tokens = ImageEmbedding(config)
        # The layers find their attention by their configuration, so they have one that names ours.
        self.layer_config = copy.copy(config)
        self.layers = nn.ModuleList(
            Phi3DecoderLayer(self.layer_config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SampleRotary(config)
        self.gradient_checkpointing = False
        self.set_attention(config._attn_implementation)
        self.post_init()

    def freeze_unused(self) -> None:
        """Ask no gradient for the tower's parameters that never reach its output."""
        for parameter in self.vision_embed_tokens.img_processor.vision_model.unused_parameters():
            parameter.requires_grad_(False)

    def set_attention(self, attention: str) -> None:
        """Use "flash", "sdpa" or "eager" in the decoder; the tower runs flash's samples by sdpa."""
        self.layer_config._attn_implementation_internal = registered_name(attention)
        plain = "eager" if attention == "eager" else "sdpa"
        self.config._attn_implementation_internal = plain
        tower = self.vision_embed_tokens.img_processor.vision_model
        tower.config._attn_implementation_internal = plain

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pictures: Pictures | None = None,
        segments: Segments | None = None,
        crop_chunks: int | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, Cache | None]:
        """Returns the final hidden states [B, T, hidden_size], those of every layer if asked for, and the cache."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pictures, segments, crop_chunks)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        position_ids, lengths = positions_and_lengths(inputs_embeds, attention_mask, position_ids, segments, past)
        mask = None
        if segments is None:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
            )
        rotation = self.rotary_emb(position_ids, lengths, inputs_embeds.dtype)
        hidden = inputs_embeds
        states: list[Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                states.append(hidden)
            hidden = layer(
                hidden,
                attention_mask=mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=rotation,
                segments=segments,
            )
        hidden = self.norm(hidden)
        return hidden, (*states, hidden) if output_hidden_states else None, past_key_values if use_cache else None

    def embed(
        self, input_ids: Tensor, pictures: Pictures | None, segments: Segments | None, crop_chunks: int | None
    ) -> Tensor:
        """Token embeddings [B, T, hidden_size] with the pictures' vectors written over the positions of theirs."""
        batch, tokens = input_ids.shape
        embeds = self.embed_tokens(input_ids.clamp(min=0))
        if pictures is None:
            if crop_chunks:
                none = input_ids.new_empty(0, dtype=torch.uint8)
                embeds = embeds + self.vision_embed_tokens(none, None, (), crop_chunks)
            return self.embed_dropout(embeds)
        bounds: Sequence[int] = range(0, batch * tokens + 1, tokens)
        if segments is not None:
            bounds = segments.bounds
        lengths = self.vision_embed_tokens.lengths(pictures.grids)
        positions, rows = place_pictures(input_ids.flatten().cpu().numpy(), bounds, lengths)
        features = self.vision_embed_tokens(pictures.crops, pictures.views, pictures.grids, crop_chunks)
        if rows is not None:
            features = features[torch.from_numpy(rows).to(features.device)]
        where = torch.from_numpy(positions).to(embeds.device)
        embeds = embeds.flatten(0, 1).index_copy(0, where, features.to(embeds.dtype))
        return self.embed_dropout(embeds.view(batch, tokens, -1))


def positions_and_lengths(
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    segments: Segments | None,
    past: int,
) -> tuple[Tensor, Tensor]:
    """Position ids int64 [B, T] and the length of the sample that each belongs to, [B, T] or [B, 1].

    Positions count a sample's own tokens from 0, whatever padding stands before it or sample before it in the pack.
    """
    device, tokens = inputs_embeds.device, inputs_embeds.shape[1]
    if segments is not None:
        counts = torch.diff(segments.ends.long())
        if position_ids is None:
            starts = torch.repeat_interleave(segments.ends[:-1].long(), counts, output_size=tokens)
            position_ids = (torch.arange(tokens, device=device) - starts)[None]
        return position_ids, torch.repeat_interleave(counts, counts, output_size=tokens)[None]
    if attention_mask is not None and attention_mask.dim() == 2:
        present = attention_mask.long()
        if position_ids is None:
            position_ids = (present.cumsum(dim=-1) - 1).clamp(min=0)[:, -tokens:]
        return position_ids, present.sum(dim=-1, keepdim=True)
    if position_ids is None:
        position_ids = torch.arange(past, past + tokens, device=device)[None]
    return position_ids, position_ids.amax(dim=-1, keepdim=True) + 1


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
        chosen = given._attn_implementation if isinstance(given, Phi3VConfig) else None
        attention = kwargs.pop("attn_implementation", None) or chosen or "auto"
        attention = {"auto": "sdpa", "flash_attention_2": "flash"}.get(attention, attention)
        if attention not in SETTINGS:
            raise ValueError(f"attn_implementation: {attention!r} is not one of {', '.join(SETTINGS)}")
        kwargs["attn_implementation"] = "eager" if attention == "eager" else "sdpa"
        wants_info = kwargs.pop("output_loading_info", False)
        weights.check_folder(pretrained_model_name_or_path, cls, kwargs)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        weights.check_loading(pretrained_model_name_or_path, info)
        model.model.set_attention(attention)
        model.model.freeze_unused()
        return loaded if wants_info else model

    def set_attn_implementation(self, attn_implementation: str, allow_all_kernels: bool = False) -> None:
        """Change the attention of a built model: "flash", "sdpa" or "eager"."""
        self.model.set_attention(attn_implementation)

    def set_checkpointing(self, *, decoder: bool, vision: bool) -> None:
        """Recompute activations in the backward pass, layer by layer, in the decoder, in the tower, in both or none."""
        if decoder or vision:
            self.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.activation_checkpointing_disable()
        tower = self.model.vision_embed_tokens.img_processor.vision_model
        for layers, wanted in ((self.model.layers, decoder), (tower.encoder.layers, vision)):
            for layer in layers:
                layer.gradient_checkpointing = wanted

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
            input_ids: int64 [B, T]; −k at every position of the sample's picture k. Left as they are.
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
            segments = Segments.of(cu_seqlens, given.shape[1], given.device)
        if input_ids is not None and given.shape[1] > 1:
            self._check_ids(input_ids, pixel_values is not None)
        caching = self.config.use_cache and not self.training and labels is None if use_cache is None else use_cache
        hidden, states, cache = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pictures=read_pictures(pixel_values, image_sizes, self.config.crop_size, self.device),
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
        targets = labels[:, 1:].clone()
        if segments is not None and len(segments.lengths) > 1:
            targets[:, segments.ends[1:-1].long() - 1] = -100
        wanted = targets != -100
        targets = targets[wanted]
        if len(targets) and int(targets.min()) < 0:
            raise ValueError(f"labels: found {int(targets.min())}; a label is a token id, or −100 where there is none")
        loss = self.lm_head(hidden[:, :-1][wanted], targets, chunks)
        return loss, wanted.sum()

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
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            lengths = input_ids.shape[1] if attention_mask is None else attention_mask.sum(dim=-1)
            switching = self.model.rotary_emb.original_length + 1
            if self.model.rotary_emb.has_branches and bool(torch.as_tensor(lengths == switching).any()):
                past_key_values, kwargs["next_sequence_length"] = None, None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            inputs.update(pixel_values=pixel_values, image_sizes=image_sizes)
        return inputs
