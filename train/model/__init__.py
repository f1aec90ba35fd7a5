"""Phi-3-vision for transformers 5. Names load on first use, so that `train.model.crops` works without torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.model.configuration import Phi3VConfig
    from train.model.modeling import Phi3VForCausalLM
    from train.model.processing import Phi3VProcessor

__all__ = ["Phi3VConfig", "Phi3VForCausalLM", "Phi3VProcessor"]

_HOME = {"Phi3VConfig": "configuration", "Phi3VForCausalLM": "modeling", "Phi3VProcessor": "processing"}


def _register() -> None:
    """Make the Auto classes of transformers know the model type `phi3_v`; a second call changes nothing."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    from train.model.configuration import Phi3VConfig
    from train.model.modeling import Phi3VForCausalLM
    from train.model.processing import Phi3VProcessor

    AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
    AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
    AutoModelForImageTextToText.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
    AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
