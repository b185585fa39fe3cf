"""How edits reach a running model: forward hooks, and edits turned into functions of the hidden state.

`LanguageModel` attaches what this file builds. Each hook gets its own function as an argument, so
with several layers every layer applies its own vectors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, Edit, Rescale, Where
from saeflow.sources.architectures import Point, Tap
from saeflow.sources.dictionary import AttentionWriter, Dictionary, Norm
from saeflow.sources.values import OutputProjection

Change: TypeAlias = Callable[[Tensor], Tensor]
"""A function of the hidden state `Float[Tensor, "batch pos d_in"]` that returns one of the same shape."""

_Call: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

Watcher: TypeAlias = Callable[[Tensor], Tensor | None]
"""As `Change`; None leaves the hidden state as it is."""


def watch_output(module: nn.Module, act: Watcher) -> RemovableHandle:
    """Call `act` on what `module` returns, a tensor or a tuple beginning with it, and put back its answer."""

    def hook(_module: nn.Module, _args: object, output: Tensor | tuple[object, ...]) -> object:
        if isinstance(output, Tensor):
            return act(output)
        changed = act(cast("Tensor", output[0]))
        return None if changed is None else (changed, *output[1:])

    return module.register_forward_hook(hook)


def watch_input(module: nn.Module, act: Watcher) -> RemovableHandle:
    """Call `act` on the hidden state `module` is called with, and put back its answer."""

    def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> _Call | None:
        if args:
            changed = act(cast("Tensor", args[0]))
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = act(cast("Tensor", kwargs["hidden_states"]))
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextlib.contextmanager
def answered_by(module: nn.Module, forward: Callable[..., object]) -> Generator[None, None, None]:
    """Let `forward` answer in place of `module`, whose hooks still run; what stood there comes back after."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@dataclass
class Clock:
    """How many tokens the cache held when the running forward began: 0 in a prompt, more while decoding."""

    seen: int = 0

    def follow(self, trunk: nn.Module) -> RemovableHandle:
        """Read the time before every forward of `trunk`, the model without its head."""

        def hook(_module: nn.Module, _args: object, kwargs: dict[str, object]) -> None:
            cache = kwargs.get("past_key_values")
            self.seen = 0 if cache is None else int(cache.get_seq_length())  # pyright: ignore[reportAttributeAccessIssue]

        return trunk.register_forward_pre_hook(hook, with_kwargs=True)


def only(tokens: Where, clock: Clock, change: Change) -> Change:
    """`change`, applied at the chosen token positions and nowhere else."""
    if tokens == EVERYWHERE:
        return change

    def at_positions(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        columns = [column for column in range(h.shape[1]) if clock.seen + column in tokens]
        if not columns:
            return h
        out = h.clone()
        out[:, columns] = change(h[:, columns])
        return out

    return at_positions


def spliced(point: Point, fn: Change) -> Change:
    """`fn`, its answer checked for the shape of what it replaces."""

    def splice(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        new = fn(h)
        if new.shape != h.shape:
            raise WidthMismatch(
                f"the function spliced in at {point} returned shape {tuple(new.shape)} for a hidden state of "
                f"shape {tuple(h.shape)}. Return one of the same shape."
            )
        return new.to(h)

    return splice


def rescaling(edit: Rescale, dictionary: Dictionary) -> Change:
    """h + (r - 1) a V, with a from the dictionary's own encoder on the h that comes in.

    V are the decoder rows as the dictionary scales them, so that a V is the share of the
    reconstruction the features have, in the space of the dictionary's tap. Where the dictionary
    normalises each token, that share is scaled back as its `decode` does.

    Raises:
        UnknownFeature: for an index outside the dictionary.
    """
    chosen = _indices(edit.features, dictionary)
    rows = dictionary.W_dec[chosen]

    def rescale(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        if edit.r == 1.0:
            return h
        x = h.to(rows)
        acts = dictionary.encode(x)
        if dictionary.preprocessing.norm is Norm.NONE:
            share = acts[..., chosen] @ rows
        else:
            silent = torch.zeros_like(acts)
            alone = silent.clone()
            alone[..., chosen] = acts[..., chosen]
            share = dictionary.decode(alone, x) - dictionary.decode(silent, x)
        return h + ((edit.r - 1.0) * share).to(h)

    return rescale


def adding(edit: Add, dictionary: Dictionary, model: AttentionWriter) -> Change:
    """h + s V in the residual stream, with V the unit rows there; rows of z are projected by the model.

    Raises:
        UnknownFeature: for an index outside the dictionary.
        WidthMismatch: for a dictionary on z that is not this model's.
    """
    chosen = _indices(edit.features, dictionary)
    rows = dictionary.W_dec[chosen].float()
    if dictionary.tap is Tap.Z:
        rows = OutputProjection(*model.attention_writer(edit.site.layer)).project(rows)
    strengths = torch.tensor(list(edit.strengths.values()))
    total = strengths @ torch.nn.functional.normalize(rows.cpu(), dim=-1, eps=0.0)

    def add(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return h + total.to(h)

    return add


def resolve(
    edit: Edit, dictionaries: Mapping[Site, Dictionary] | None, model: AttentionWriter, clock: Clock
) -> tuple[Point, Change]:
    """Where an edit acts, and the function it is there.

    `Rescale` acts on the tensor its dictionary reads, `Add` on the site's own tensor in the stream.

    Raises:
        InvalidArgument: without dictionaries.
        UnknownSite: without a dictionary at the edit's site.
        UnknownFeature: for an index outside the dictionary.
        WidthMismatch: for a dictionary on z that is not this model's.
    """
    if dictionaries is None:
        raise InvalidArgument(
            f"an edit at {edit.site} needs vectors. Pass dictionaries, a mapping of Site to Dictionary."
        )
    if edit.site not in dictionaries:
        raise UnknownSite(
            f"an edit names {edit.features[0]}, and there is no dictionary at {edit.site}. Pass one for it."
        )
    dictionary = dictionaries[edit.site]
    if isinstance(edit, Rescale):
        point = Point(edit.site.layer, dictionary.tap)
        return point, only(edit.tokens, clock, rescaling(edit, dictionary))
    return Point.at(edit.site), only(edit.tokens, clock, adding(edit, dictionary, model))


def _indices(features: tuple[FeatureId, ...], dictionary: Dictionary) -> list[int]:
    n_features = dictionary.n_features
    outside = [str(feature) for feature in features if feature.index >= n_features]
    if outside:
        raise UnknownFeature(
            f"{', '.join(outside)} lie outside the dictionary at {features[0].site}, which has {n_features} "
            f"features. Indices run from 0 to {n_features - 1}."
        )
    return [feature.index for feature in features]
