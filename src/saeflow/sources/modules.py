"""The linear map or gain that a module applies to row vectors, found by running the module itself.

`module.weight` is not always what the module multiplies by: in 8 or 4 bits it holds codes with scales next to it,
LoRA adds a product to it, and in an offloaded model it is a placeholder without values. So the module is run: a linear
map A is `f(I) - f(0)`, and the gain of a norm is the factor it applies to a normalised row. Only the forward is run,
without the hooks that edits and captures attach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from saeflow.errors import InvalidArgument

_AT_ONCE: Final = 1024
"""Rows put through a module at a time."""
_LOUD: Final = 100.0
"""The size of the entries a norm is run on: so large that the epsilon under its root has no visible effect."""


def device_of(module: nn.Module) -> torch.device | None:
    """The device a module computes on: that of its weights, or where accelerate moves offloaded ones.

    None for a module without weights.

    Raises:
        InvalidArgument: for weights that are placeholders without an accelerate hook to load them.
    """
    found = next((tensor.device for tensor in module.parameters()), None)
    if found is None or found.type != "meta":
        return found
    for part in module.modules():
        for hook in _accelerate_hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    raise InvalidArgument(
        f"the weights of a {type(module).__name__} are placeholders without values (device 'meta'). Load the model "
        "with its weights, on a device or offloaded by accelerate."
    )


def parameters_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter with its name; offloaded ones are read from where accelerate keeps them."""
    kept = {name: hook for name, part in model.named_modules() for hook in _accelerate_hooks(part)}
    for name, tensor in model.named_parameters():
        path, _, last = name.rpartition(".")
        weights: Any = getattr(kept.get(path), "weights_map", None)
        yield name, weights[last] if tensor.is_meta and weights is not None else tensor


def applied(module: nn.Module, rows: Float[Tensor, "n d_in"], dtype: torch.dtype) -> Float[Tensor, "n d_out"]:
    """`A x` for each row x, of a module that computes `A x + b`; in the module's dtype, or `dtype` if it has no floats.

    Raises:
        InvalidArgument: when the module cannot be run.
    """
    floats = (p.dtype for p in module.parameters() if p.dtype.is_floating_point)
    rows = rows.to(device_of(module), next(floats, dtype))
    with torch.no_grad():
        nothing = _run(module, rows.new_zeros(1, rows.shape[1]))
        return torch.cat([_run(module, some) - nothing for some in rows.split(_AT_ONCE)])


class LinearMaps:
    """The matrices of linear modules, found by `applied` and cached; recomputed when a module has changed."""

    def __init__(self) -> None:
        """Start with an empty cache."""
        self._known: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def of(self, module: nn.Module, d_in: int, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        """The matrix of a module that reads rows of width `d_in`.

        Raises:
            InvalidArgument: when the module cannot be run.
        """
        weight = getattr(module, "weight", None)
        # a subclass, a replaced forward (accelerate's) or offloaded values must be run instead
        if isinstance(weight, Tensor) and not weight.is_meta and "forward" not in module.__dict__:
            if type(module) is nn.Linear:
                return weight.detach()
            if type(module) is Conv1D:
                return weight.detach().T
        # one row tells whether a cached matrix still holds
        probe = applied(module, torch.linspace(-1, 1, d_in)[None], dtype)
        known = self._known.get(module)
        if known is None or not torch.equal(known[0], probe):
            known = probe, applied(module, torch.eye(d_in), dtype).T
            self._known[module] = known
        return known[1]


def constant_of(norm: nn.Module, module: nn.Module, d_in: int, dtype: torch.dtype) -> Float[Tensor, " d_out"]:
    """The output of a linear module behind a norm whose input is 0: its bias, plus A times the norm's bias.

    Raises:
        InvalidArgument: when a module cannot be run.
    """
    floats = (p.dtype for p in norm.parameters() if p.dtype.is_floating_point)
    with torch.no_grad():
        where = device_of(norm) or device_of(module)  # the norm may be an Identity, which has no device
        nothing = torch.zeros(1, d_in, device=where, dtype=next(floats, dtype))
        return _run(module, _run(norm, nothing))[0]


def gain_of(norm: nn.Module, d: int, dtype: torch.dtype, *, centred: bool) -> Float[Tensor, " d"]:
    """The factor per channel that a norm applies to a normalised row: its weight, plus 1 in Gemma.

    `(f(x) - f(-x)) / 2` is the gain times the normalised x, whatever bias the norm adds.

    Raises:
        InvalidArgument: when the module cannot be run.
    """
    x = torch.ones(1, d)
    x[:, 1::2] = -1.0
    shifted = x - x.mean() if centred else x
    u = shifted / shifted.square().mean().sqrt()
    floats = (p.dtype for p in norm.parameters() if p.dtype.is_floating_point)
    loud = (_LOUD * x).to(device_of(norm), next(floats, dtype))
    with torch.no_grad():
        return ((_run(norm, loud) - _run(norm, -loud)) / 2 / u.to(loud))[0]


def is_centred(norm: nn.Module, model: nn.Module) -> bool:
    """Whether a norm subtracts the mean of a row (LayerNorm), so that adding a constant to the row changes nothing.

    Raises:
        InvalidArgument: when the module cannot be run.
    """
    weight = next(norm.parameters(), next(model.parameters()))
    width = int(weight.shape[-1])
    row = torch.linspace(-1, 1, width).sin()[None].to(device_of(norm) or device_of(model), weight.dtype)
    with torch.no_grad():
        return torch.allclose(_run(norm, row), _run(norm, row + 2), atol=0.05, rtol=0.05)


def _run(module: nn.Module, rows: Tensor) -> Tensor:
    try:
        return cast("Tensor", module.forward(rows))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidArgument(
            f"what a {type(module).__name__} of the model does cannot be found out by running it ({reason}). Load "
            "the model in a form whose modules run on their own, such as bfloat16."
        ) from error


def _accelerate_hooks(module: nn.Module) -> tuple[object, ...]:
    hook: Any = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))
