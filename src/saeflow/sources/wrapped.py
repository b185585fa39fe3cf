"""The transformers model inside a wrapper of another library: peft's adapters, TransformerLens's bridge, nnsight.

A wrapper is recognised by the library of its class, which is not imported. A wrapper that computes something its inner
model does not is refused.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saeflow.errors import InvalidArgument


def model_inside(
    model: object, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The transformers model in a wrapper, or `model` itself, with its tokenizer: the given one, else the wrapper's.

    Raises:
        InvalidArgument: for an object that neither is nor contains a transformers model; for a wrapper whose inner
            model computes something else (peft's prompts, TransformerLens's processed weights) or has no weights yet;
            or without a tokenizer.
    """
    inside, libraries = cast("Any", model), {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "peft" in libraries:
        # layer adapters act inside the base model, but prompts and prefixes are inserted by the wrapper
        kinds = [str(config.peft_type) for config in inside.peft_config.values() if config.is_prompt_learning]
        if kinds:
            raise InvalidArgument(
                f"an adapter of kind {kinds[0]} acts before the model, not in its layers, and would be left out. Use "
                "one that changes layers (LoRA and its kin)."
            )
        inside = inside.get_base_model()
    elif "nnsight" in libraries:
        inside, tokenizer = inside._module, tokenizer or inside.tokenizer
        if isinstance(inside, nn.Module) and any(parameter.is_meta for parameter in inside.parameters()):
            raise InvalidArgument(
                "the model of nnsight has no weights yet; they are loaded at its first trace. Make it with "
                "dispatch=True."
            )
    elif "transformer_lens" in libraries:
        if getattr(inside, "compatibility_mode", False) or not hasattr(inside, "original_model"):
            raise InvalidArgument(
                f"a {type(model).__name__} with weights that TransformerLens processed computes other hidden states "
                "than the model of transformers. Make a bridge without compatibility mode, or use load_model."
            )
        inside, tokenizer = inside.original_model, tokenizer or inside.tokenizer
    if not isinstance(inside, PreTrainedModel):
        raise InvalidArgument(
            f"a {type(model).__name__} is no model of transformers, whose modules saeflow could name. Pass the model "
            "itself, or use load_model."
        )
    if tokenizer is None:
        raise InvalidArgument(f"a {type(model).__name__} comes without a tokenizer. Pass it as the second argument.")
    return inside, tokenizer
