"""What a sample may not be, said before anything is computed; what a pack without labels is worth."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.schema import Sample, SampleError
from tests.factories.comparing import ORIGINAL_LENGTH, SAMPLES, gradients
from tests.factories.small_models import noise, pack, sample, small_folder, small_model
from tests.factories.small_shards import SmallShards, small_shards
from tests.unit.test_encode import job, made, maker_of
from train.model import Phi3VProcessor
from train.pipeline.batch import BadSample, Batch, Encoded, assemble
from train.step_record import Counts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    return small_shards(tmp_path_factory.mktemp("built"), shards=1, per_shard=8)


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


MESSAGES = ({"role": "user", "content": "<|image_1|>?"}, {"role": "assistant", "content": "yes"})


def left_out(built: SmallShards, picture: bytes) -> BadSample:
    """What is said of a sample with this picture; nothing of it reaches the pack."""
    maker = maker_of(built)
    given = Sample(key="s-7", messages=MESSAGES, images=("png",), target={}, source={})
    maker._reader.read = lambda number: (given, [picture])  # type: ignore[method-assign, assignment]
    grids = maker._encoder.grids_of(maker._corpus.entry(3), 4)
    ids, _ = maker._encoder.words(given, grids)
    batch = maker.make(job((3,), (len(ids),))).batch
    assert batch.keys == ()
    assert len(batch.crops) == 0
    (bad,) = batch.bad
    return bad


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "empty"),
        (png(900, 900)[:60], "truncated"),
        (png(4000, 20), "too-thin"),
        (png(8000, 8000), "too-large"),
    ],
)
def test_a_sample_that_cannot_be_trained_on_is_left_out_with_its_key_and_why(
    built: SmallShards, picture: bytes, reason: str
) -> None:
    bad = left_out(built, picture)
    assert bad.key == "train-0-3"
    assert bad.shard == "shard-000000.tar"
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("prompt", "pictures", "found"),
    [("<|image_1|> <|image_2|>?", 1, r"\[1, 2\], the sample has 1"), ("?", 1, "has 1"), ("<|image_1|>?", 0, "has 0")],
)
def test_tags_and_pictures_of_a_sample_must_match_and_the_sample_is_named(
    prompt: str, pictures: int, found: str
) -> None:
    messages = ({"role": "user", "content": prompt}, MESSAGES[1])
    with pytest.raises(SampleError, match=f"sample 's-7': .*{found}"):
        Sample(key="s-7", messages=messages, images=("png",) * pictures, target={}, source={})


def test_places_of_pictures_are_never_labels(built: SmallShards) -> None:
    batch = made(built, tuple(range(8)))
    assert (batch.input_ids < 0).any()
    assert (batch.labels[batch.input_ids < 0] == -100).all()
    assert ((batch.labels == -100) | (batch.labels >= 0)).all()


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Phi3VProcessor:
    return Phi3VProcessor.from_pretrained(small_folder(tmp_path_factory.mktemp("limits") / "model"))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (0, 5)), "prompt 1: picture 2: .*0×5"),
        (Image.new("RGB", (5000, 1)), "prompt 1: picture 2: .*5000"),
    ],
)
def test_the_processor_names_the_picture_it_cannot_take(
    processor: Phi3VProcessor, picture: Image.Image, message: str
) -> None:
    prompts = ["<|image_1|>", "<|image_1|><|image_2|>"]
    pictures = [[noise(30, 30)], [noise(30, 30), picture]]
    with pytest.raises(ValueError, match=message):
        processor(prompts, images=pictures, padding=True)


@pytest.mark.parametrize("kept", [1, 3, 12])
def test_a_sequence_cut_inside_a_picture_is_refused_by_sample_and_picture(kept: int) -> None:
    first, second = sample(1, 4), sample(2, 3, [(1, 2)])
    places = (second["input_ids"] == -1).nonzero().flatten()
    end = int(places[0]) + kept
    cut = second | {"input_ids": second["input_ids"][:end], "labels": second["labels"][:end]}
    with pytest.raises(ValueError, match=rf"sample 1, picture 1: .*hold {kept} image tokens .* make 17"):
        small_model()(**pack([first, cut]))


def test_a_pack_without_labels_changes_no_gradient_by_a_single_bit() -> None:
    model = small_model(original_length=ORIGINAL_LENGTH)
    worth = pack(SAMPLES[:4])
    silent = pack(SAMPLES[4:])
    silent["labels"] = torch.full_like(silent["labels"], -100)
    wanted = gradients(model, [worth])
    found = gradients(model, [worth, silent])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def encoded(key: str, labels: list[int]) -> Encoded:
    nothing = np.zeros((0, 3, 28, 28), np.uint8)
    return Encoded(
        key=key,
        input_ids=np.arange(1, 1 + len(labels)),
        labels=np.array(labels),
        crops=nothing,
        grids=np.zeros((0, 2), np.int64),
    )


def test_packs_without_labels_are_counted() -> None:
    def assembled(*samples: Encoded) -> Batch:
        nothing = np.zeros((0, 3, 28, 28), np.uint8)
        return assemble(list(samples), crops=nothing, crop_chunks=0, label_chunks=1, number=0, bad=[])

    packs = [
        assembled(encoded("a", [-100, 2, 3]), encoded("b", [-100, -100])),
        assembled(encoded("c", [-100, -100])),
        assembled(),
    ]
    counts = Counts.of(packs, 0)
    assert (counts.packs, counts.packs_without_labels, counts.label_tokens, counts.samples) == (2, 1, 2, 3)
