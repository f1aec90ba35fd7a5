import torch

from tests.factories.small_models import small_config
from train.model.rotary import SampleRotary


def rotary(**changes: object) -> SampleRotary:
    return SampleRotary(small_config(original_length=8, **changes))


def test_each_sample_takes_the_branch_of_its_own_length() -> None:
    module = rotary()
    positions = torch.arange(8).expand(2, 8)
    cos, sin = module(positions, torch.tensor([[8], [9]]), torch.float32)
    alone_short = module(positions[:1], torch.tensor([[8]]), torch.float32)
    alone_long = module(positions[:1], torch.tensor([[9]]), torch.float32)
    assert torch.equal(cos[:1], alone_short[0])
    assert torch.equal(sin[1:], alone_long[1])
    assert not torch.equal(cos[0], cos[1])


def test_the_table_follows_the_published_formula() -> None:
    module = rotary()
    cos, sin = module(torch.tensor([[3]]), torch.tensor([[4]]), torch.float32)
    config = small_config(original_length=8)
    factor = torch.tensor(config.rope_parameters["short_factor"])
    angles = 3 / (factor * 10000.0 ** (torch.arange(0, 32, 2) / 32))
    scale = (1 + torch.log(torch.tensor(131072 / 8)) / torch.log(torch.tensor(8.0))) ** 0.5
    torch.testing.assert_close(cos[0, 0, :16], angles.cos() * scale)
    torch.testing.assert_close(sin[0, 0, 16:], angles.sin() * scale)


def test_a_cast_of_the_module_does_not_round_the_frequencies() -> None:
    positions, lengths = torch.arange(4000)[None], torch.tensor([[4000]])
    kept = rotary()(positions, lengths, torch.float32)
    cast = rotary().to(torch.bfloat16)(positions, lengths, torch.float32)
    assert torch.equal(kept[0], cast[0])


def test_without_scaling_it_is_plain_rope() -> None:
    module = SampleRotary(small_config(rope_scaling=None))
    cos, _ = module(torch.tensor([[5]]), torch.tensor([[100000]]), torch.float32)
    torch.testing.assert_close(cos[0, 0, :16], (5 / 10000.0 ** (torch.arange(0, 32, 2) / 32)).cos())
