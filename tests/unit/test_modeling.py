from typing import Any

import pytest
import torch

from tests.factories.comparing import ORIGINAL_LENGTH, SAMPLES, alone, assert_same_gradients, gradients
from tests.factories.small_models import SIZES, pack, padded, sample, small_model
from train.model import Phi3VForCausalLM

Arguments = dict[str, Any]


@pytest.fixture(scope="module")
def model() -> Phi3VForCausalLM:
    return small_model(original_length=ORIGINAL_LENGTH)


def test_the_loss_is_the_mean_cross_entropy_of_the_next_labels(model: Phi3VForCausalLM) -> None:
    batch = padded(SAMPLES, "right")
    output = model(**batch)
    wanted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert output.loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert output.label_tokens == (batch["labels"][:, 1:] != -100).sum()
    summed = model(**batch, loss_reduction="sum", return_logits=False)
    assert summed.logits is None
    assert summed.loss.item() == pytest.approx(wanted.item() * output.label_tokens.item(), rel=1e-5)


def test_a_label_in_front_of_a_sample_is_not_asked_of_the_sample_before(model: Phi3VForCausalLM) -> None:
    batch = pack(SAMPLES[:3])
    marked = batch["labels"].clone()
    marked[:, batch["cu_seqlens"][1:-1].long()] = 5
    assert model(**batch | {"labels": marked}).label_tokens == model(**batch).label_tokens


@pytest.mark.parametrize("chunks", [1, 3, 50])
def test_the_number_of_chunks_does_not_change_the_loss(model: Phi3VForCausalLM, chunks: int) -> None:
    wanted = gradients(model, [pack(SAMPLES)])
    chunked = pack(SAMPLES) | {"crop_chunks": chunks, "label_chunks": chunks}
    assert_same_gradients(gradients(model, [chunked]), wanted)


def test_the_tower_is_called_exactly_as_often_as_told(model: Phi3VForCausalLM) -> None:
    calls: list[int] = []
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    handle = tower.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    model(**pack(SAMPLES), crop_chunks=3)
    own = sum(len(one["crops"]) for one in SAMPLES)
    views = sum(int(h * w > 28 * 28) for one in SAMPLES for h, w in one["image_sizes"].tolist())
    assert len(calls) == 3
    assert sum(calls) == own + views
    model(**pack([SAMPLES[1]]), crop_chunks=4)
    model(**pack([SAMPLES[0]]), crop_chunks=2)
    assert len(calls) == 9
    model(**pack([SAMPLES[0]]))
    handle.remove()
    assert len(calls) == 9


def test_a_pack_without_pictures_or_labels_reaches_every_parameter_with_zeros(model: Phi3VForCausalLM) -> None:
    batch = pack([SAMPLES[0]])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    model.zero_grad()
    output = model(**batch, crop_chunks=2, label_chunks=2, return_logits=False)
    assert output.loss == 0
    assert output.label_tokens == 0
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() == 0, name


def test_a_pack_without_pictures_has_the_logits_of_text_alone(model: Phi3VForCausalLM) -> None:
    batch = pack([SAMPLES[0]])
    assert torch.equal(model(**batch, crop_chunks=2).logits, model(**batch).logits)


def test_the_towers_last_layer_is_stored_and_asks_for_no_gradient(model: Phi3VForCausalLM) -> None:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == 18
    assert all(".layers.2." in name or ".post_layernorm." in name for name in frozen)


def test_each_picture_goes_where_its_number_says(model: Phi3VForCausalLM) -> None:
    one = sample(9, 3, [(1, 2), (2, 2)])
    ids = one["input_ids"]
    swapped = ids.clone()
    first, second = ids == -1, ids == -2
    start = int(first.nonzero()[0])
    body = torch.cat((ids[second], ids[int(first.nonzero()[-1]) + 1 : int(second.nonzero()[0])], ids[first]))
    swapped[start : start + len(body)] = body
    crops = torch.cat((one["crops"][2:], one["crops"][:2]))
    renamed = torch.where(swapped < 0, -3 - swapped, swapped)
    arguments = {"pixel_values": one["crops"], "image_sizes": one["image_sizes"]}
    exchanged = {"pixel_values": crops, "image_sizes": one["image_sizes"].flip(0)}
    by_number = model(input_ids=swapped[None], **arguments).logits
    in_order = model(input_ids=renamed[None], **exchanged).logits
    assert (by_number - in_order).abs().max() <= 1e-5


def test_a_picture_shown_twice_has_its_features_twice(model: Phi3VForCausalLM) -> None:
    one = sample(10, 3, [(1, 2)])
    run = one["input_ids"][one["input_ids"] < 0]
    ids = torch.cat((one["input_ids"], run))[None]
    doubled = torch.cat((one["input_ids"], run - 1))[None]
    crops, sizes = one["crops"], one["image_sizes"]
    shown = model(input_ids=ids, pixel_values=crops, image_sizes=sizes).logits
    twice = model(input_ids=doubled, pixel_values=crops.repeat(2, 1, 1, 1), image_sizes=sizes.repeat(2, 1)).logits
    assert (shown - twice).abs().max() <= 1e-5


def test_published_layouts_of_pixel_values_mean_the_same(model: Phi3VForCausalLM) -> None:
    from train.model.image_embedding import global_views, normalise

    one = sample(11, 3, [(1, 2), (2, 2)])
    wanted = model(**alone(one)).logits
    pixels = normalise(one["crops"])
    views = global_views(pixels, [(1, 2), (2, 2)], [0, 1], 28)
    published = torch.zeros(2, 6, 3, 28, 28)
    published[:, 0] = views
    published[0, 1:3], published[1, 1:5] = pixels[:2], pixels[2:]
    rows = torch.zeros(2, 4, 3, 28, 28, dtype=torch.uint8)
    rows[0, :2], rows[1] = one["crops"][:2], one["crops"][2:]
    for values in (published, rows, pixels):
        found = model(**alone(one) | {"pixel_values": values}).logits
        assert (found - wanted).abs().max() <= 1e-5


def test_inputs_are_left_as_they_are(model: Phi3VForCausalLM) -> None:
    batch = pack(SAMPLES)
    before = {key: value.clone() for key, value in batch.items()}
    model(**batch).loss.backward()
    assert all(torch.equal(batch[key], before[key]) for key in batch)


@pytest.mark.parametrize(
    ("decoder", "vision", "offload"),
    [(True, False, False), (False, True, False), (True, True, False), (True, True, True)],
)
def test_checkpointing_changes_no_gradient(decoder: bool, vision: bool, offload: bool) -> None:
    model = small_model(original_length=ORIGINAL_LENGTH).train()
    wanted = gradients(model, [pack(SAMPLES)])
    model.set_checkpointing(decoder=decoder, vision=vision, offload=offload)
    assert model.is_activation_checkpointing
    assert_same_gradients(gradients(model, [pack(SAMPLES)]), wanted)
    model.set_checkpointing(decoder=False, vision=False)
    assert not model.is_activation_checkpointing


def test_offloaded_checkpoints_send_the_layers_inputs_to_the_host_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[torch.Size] = []

    class Noted(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            assert not pin_memory
            super().__init__(lambda tensor: sent.append(tensor.shape) or tensor, lambda tensor: tensor)

    monkeypatch.setattr("train.model.recompute.save_on_cpu", Noted)
    model = small_model().train()
    model.set_checkpointing(decoder=True, vision=True, offload=True)
    batch = pack(SAMPLES)
    model(**batch, crop_chunks=1, return_logits=False).loss.backward()
    tokens = batch["input_ids"].shape[1]
    assert sent.count(torch.Size([1, tokens, 64])) == model.config.num_hidden_layers
    assert len(sent) == model.config.num_hidden_layers + model.config.vision_config.num_hidden_layers - 1


def test_grouped_query_attention_in_packs() -> None:
    model = small_model(num_key_value_heads=1)
    assert model.config.num_attention_heads == 2
    packed = model(**pack(SAMPLES)).logits[0]
    lengths = [len(one["input_ids"]) for one in SAMPLES]
    for one, logits in zip(SAMPLES, packed.split(lengths), strict=True):
        assert (logits - model(**alone(one)).logits[0]).abs().max() <= 1e-4


def test_generation_by_cache_gives_the_tokens_of_generation_without(model: Phi3VForCausalLM) -> None:
    batch = padded(SAMPLES, "left")
    del batch["labels"]
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, **options)
    plain = model.generate(**batch, **options, use_cache=False)
    assert torch.equal(cached, plain)
    for row, one in enumerate(SAMPLES):
        single = model.generate(**{key: value for key, value in alone(one).items() if key != "labels"}, **options)
        assert torch.equal(single[0, -6:], cached[row, -6:])


def test_generation_goes_on_across_the_switch_of_rope_factors(model: Phi3VForCausalLM) -> None:
    shorter, longer = sample(12, 2, [(2, 2)], answer=1), sample(13, 30)
    assert len(shorter["input_ids"]) < len(longer["input_ids"]) < ORIGINAL_LENGTH
    batch = padded([shorter, longer], "left")
    del batch["labels"]
    options = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, **options)
    assert batch["attention_mask"].sum(dim=1).min() + 14 > ORIGINAL_LENGTH
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))


def test_a_cast_of_the_whole_model_keeps_the_rotary_tables(model: Phi3VForCausalLM) -> None:
    cast = small_model(original_length=ORIGINAL_LENGTH).to(torch.bfloat16)
    positions, lengths = torch.arange(3000)[None], torch.tensor([[3000]])
    wanted = model.model.rotary_emb(positions, lengths, torch.float32)
    assert torch.equal(cast.model.rotary_emb(positions, lengths, torch.float32)[0], wanted[0])
    assert cast(**pack(SAMPLES)).loss.dtype == torch.float32


def wrong(change: str) -> Arguments:
    batch = pack([sample(14, 3, [(1, 2)])])
    if change == "no pictures":
        del batch["pixel_values"], batch["image_sizes"]
    elif change == "no sizes":
        del batch["image_sizes"]
    elif change == "one picture too many":
        batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)
        batch["image_sizes"] = batch["image_sizes"].repeat(2, 1)
    elif change == "cut inside a picture":
        place = int((batch["input_ids"][0] == -1).nonzero()[0])
        batch["input_ids"][0, place] = 5
    elif change == "sizes of no canvas":
        batch["image_sizes"] = torch.tensor([[28, 57]])
    elif change == "crops of another size":
        batch["pixel_values"] = batch["pixel_values"][..., :14]
    elif change == "too few crops":
        batch["pixel_values"] = batch["pixel_values"][:1]
    elif change == "id beyond the vocabulary":
        batch["input_ids"][0, 1] = SIZES.vocab + 64
    elif change == "picture id in labels":
        batch["labels"][0, 3] = -1
    return batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no pictures", "no pixel_values"),
        ("no sizes", "needs image_sizes"),
        ("one picture too many", "2 are given"),
        ("cut inside a picture", "cut inside a picture"),
        ("sizes of no canvas", "whole crops"),
        ("crops of another size", "pixel_values"),
        ("too few crops", "pixel_values"),
        ("id beyond the vocabulary", "beyond the vocabulary"),
        ("picture id in labels", "labels"),
    ],
)
def test_input_that_does_not_fit_is_refused(model: Phi3VForCausalLM, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**wrong(change))
