"""Phi-3-vision without its head: token ids and pictures to hidden states, in batches and packs."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm

from train.model.attention import Segments, registered_name
from train.model.configuration import Phi3VConfig
from train.model.image_embedding import ImageEmbedding
from train.model.pictures import Pictures
from train.model.placement import place_pictures
from train.model.rotary import SampleRotary
from train.model.transfer import moved


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

    @property
    def is_gradient_checkpointing(self) -> bool:
        """What peft asks by transformers' older name, of which transformers warns whoever asks."""
        return self.is_activation_checkpointing

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding) and module.weight.numel() == 0:
            return  # partitioned: transformers would index the padding row of an empty tensor
        super()._init_weights(module)


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
        device = self.device
        embeds = self.embed_tokens(moved(input_ids.clamp(min=0), device))
        if pictures is None:
            if crop_chunks:
                none = torch.empty(0, dtype=torch.uint8, device=device)
                embeds = embeds + self.vision_embed_tokens(none, None, (), crop_chunks)
            return self.embed_dropout(embeds)
        bounds: Sequence[int] = range(0, batch * tokens + 1, tokens)
        if segments is not None:
            bounds = segments.bounds
        lengths = self.vision_embed_tokens.lengths(pictures.grids)
        positions, rows = place_pictures(input_ids.flatten().cpu().numpy(), bounds, lengths)
        features = self.vision_embed_tokens(pictures.crops, pictures.views, pictures.grids, crop_chunks)
        if rows is not None:
            features = features[moved(torch.from_numpy(rows), device)]
        where = moved(torch.from_numpy(positions), device)
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
