"""Fused kernels between the matrix products: the same numbers, in the model and under adapters."""

import pytest
import torch

from tests.factories.small_models import pack, sample, small_model
from train.config import ConfigError
from train.config_schema import Config
from train.model.head import label_slopes
from train.model.kernels import choose_kernels, logit_slopes, use_kernels
from train.model.lora import add_lora
from train.model.modeling import Phi3VForCausalLM
from train.tuning import check_kernels

SAMPLES = [sample(0, 7, [(1, 1)]), sample(1, 12), sample(2, 3, [(1, 2), (2, 1)])]


def loss_and_gradients(model: torch.nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a pack."""
    model.zero_grad()
    loss = model(**pack(SAMPLES), return_logits=False).loss
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_the_slopes_of_the_loss_are_those_of_the_plain_operations() -> None:
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(9, 16), torch.randn(50, 16), torch.randint(0, 50, (9,))
    found_both = logit_slopes(hidden @ weight.T, labels)
    for found, wanted in zip(found_both, label_slopes(hidden, weight, labels), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["full", "lora"])
def test_compiled_operations_give_the_loss_and_gradients_of_the_model_as_it_is(lora: bool) -> None:
    def made() -> torch.nn.Module:
        model = small_model().train()
        if not lora:
            return model
        torch.manual_seed(0)
        return add_lora(model, 4, 8)[0]

    wanted = loss_and_gradients(made())
    model = made()
    inner = model if isinstance(model, Phi3VForCausalLM) else model.get_base_model()
    # Traced and differentiated as for the compiler, and then run as plain operations, which needs no compiler here.
    use_kernels(inner, choose_kernels(liger=False, compiled=True, backend="aot_eager"))
    inner.set_checkpointing(decoder=True, vision=True)
    found = loss_and_gradients(model)
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_exchanged_operations_are_the_ones_that_run() -> None:
    model = small_model()
    called = []
    plain = choose_kernels(liger=False, compiled=False)

    def told(name: str) -> object:
        def call(*arguments: object) -> object:
            called.append(name)
            return getattr(plain, name)(*arguments)

        return call

    use_kernels(model, plain._replace(**{name: told(name) for name in plain._fields}))
    loss_and_gradients(model.train())
    layers, tower = model.config.num_hidden_layers, model.config.vision_config.num_hidden_layers - 1
    assert {name: called.count(name) for name in plain._fields} == {
        "norm": 2 * layers + 1,
        "gate": layers,
        "rotate": layers,
        "slopes": 1,
        "quick_gelu": tower,
    }


def test_liger_without_a_gpu_is_refused_with_what_to_set() -> None:
    config = Config.model_validate({"model": {"liger": True}})
    with pytest.raises(ConfigError, match=r"CUDA device.*model\.liger: false"):
        check_kernels(config, torch.device("cpu"))


def test_compile_without_a_compiler_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    config = Config.model_validate({"model": {"compile": True}})
    with pytest.raises(ConfigError, match="apt-get install g"):
        check_kernels(config, torch.device("cpu"))
