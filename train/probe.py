"""A batch that is the same in every run of a model: its loss at a save must come out again when that save is loaded."""

import numpy as np

from data.geometry import image_tokens
from train.pipeline.batch import IGNORED, Batch, Encoded, assemble

WORDS, ANSWERED = 24, 16
SEED = 20_240_521


def probe_batch(vocab: int, crop_size: int, tokens_per_side: int) -> Batch:
    """A picture of one crop of noise between words, then an answer, as a pack of one sample.

    vocab: ids are drawn below it. crop_size: pixels a side. tokens_per_side: image tokens a side of a crop.
    """
    draw = np.random.default_rng(SEED)
    picture = np.full(image_tokens(1, 1, tokens_per_side), -1, np.int64)
    question = draw.integers(3, vocab, WORDS // 2), picture, draw.integers(3, vocab, WORDS // 2)
    answer = draw.integers(3, vocab, ANSWERED)
    asked = sum(map(len, question))
    # Four colours were drawn when checkpoints were first verified by it, and three of them seen: still the same three.
    drawn = draw.integers(0, 256, (1, crop_size, crop_size, 4), dtype=np.uint8)
    sample = Encoded(
        key="probe",
        input_ids=np.concatenate([*question, answer]).astype(np.int64),
        labels=np.concatenate([np.full(asked, IGNORED), answer]).astype(np.int64),
        crops=np.ascontiguousarray(drawn[..., :3].transpose(0, 3, 1, 2)),
        grids=np.ones((1, 2), np.int64),
    )
    return assemble([sample], crops=sample.crops, crop_chunks=1, label_chunks=1, number=0)
