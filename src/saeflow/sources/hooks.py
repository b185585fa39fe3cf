"""How edits reach a running model: forward hooks, and edits turned into functions of the hidden state.

`LanguageModel` attaches the hooks built here. Each hook takes its function as an argument, so every layer applies its
own vectors.

Every decoded token passes every hook, so their functions do as little as possible: the vectors of consecutive `Add`s
at a point are summed beforehand, only the chosen features are encoded, and tensors are moved to the hidden state's
device once.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saeflow.errors import InvalidArgument, UnknownFeature, UnknownSite, WidthMismatch
from saeflow.ids import FeatureId, Site
from saeflow.interventions import EVERYWHERE, Add, AddVector, Edit, Positions, Rescale, Where
from saeflow.sources.activations import COMPETING
from saeflow.sources.architectures import Point, View
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.weights import unit_rows

Change: TypeAlias = Callable[[Tensor], Tensor]
"""A function from a hidden state `Float[Tensor, "batch pos d_in"]` to its replacement, of the same shape."""

_Call: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

Watcher: TypeAlias = Callable[[Tensor], Tensor | None]
"""As `Change`, but returning None leaves the hidden state as it is."""


def watch_output(module: nn.Module, act: Watcher) -> RemovableHandle:
    """Call `act` on the output of `module`, a tensor or a tuple beginning with one, and put its answer in place.

    Mixtures of experts may return the tokens of all texts in one list; `act` then sees them in the batch shape of the
    module's input.

    Raises:
        InvalidArgument: during a pass, when the module's input is such a list too.
    """

    def hook(_module: nn.Module, args: tuple[object, ...], output: Tensor | tuple[object, ...]) -> object:
        own = cast("Tensor", output if isinstance(output, Tensor) else output[0])
        given = args[0] if args else None
        flat = own.ndim == 2 and isinstance(given, Tensor) and given.ndim == 3
        if own.ndim == 2 and not flat:
            raise InvalidArgument(
                f"a {type(module).__name__} returns the tokens of all texts in one list, of shape {list(own.shape)}, "
                "which does not say where a text begins. There is no site at this module."
            )
        changed = act(own.view(*cast("Tensor", given).shape[:2], -1) if flat else own)
        if changed is None:
            return None
        changed = changed.reshape(own.shape) if flat else changed
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    return module.register_forward_hook(hook)


def watch_input(module: nn.Module, act: Watcher) -> RemovableHandle:
    """Call `act` on the hidden state that is the input of `module`, and put its answer in place."""

    def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> _Call | None:
        if args:
            changed = act(cast("Tensor", args[0]))
            return None if changed is None else ((changed, *args[1:]), kwargs)
        changed = act(cast("Tensor", kwargs["hidden_states"]))
        return None if changed is None else (args, {**kwargs, "hidden_states": changed})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def with_shift(shift: Float[Tensor, " d_in"] | None, act: Watcher) -> Watcher:
    """`act` on the hidden state minus `shift` (or, for None, minus each token's mean), added back to its answer."""

    def shifted(h: Float[Tensor, "batch pos d_in"]) -> Tensor | None:
        away = h.mean(dim=-1, keepdim=True) if shift is None else shift.to(h)
        seen = h - away
        changed = act(seen)
        return None if changed is None or changed is seen else changed + away

    return shifted


def with_factor(factor: float, act: Watcher) -> Watcher:
    """`act` on `factor` times the hidden state, its answer divided by `factor`; unchanged values keep every bit."""

    def scaled(h: Float[Tensor, "batch pos d_in"]) -> Tensor | None:
        seen = h * factor
        changed = act(seen)
        return None if changed is None or changed is seen else torch.where(changed == seen, h, changed / factor)

    return scaled


def with_copies(act: Watcher) -> Watcher:
    """`act` on a copy of the hidden state, with a copy of its answer: the model changes the tensor in place later."""

    def copied(h: Float[Tensor, "batch pos d_in"]) -> Tensor | None:
        changed = act(h.clone())
        return None if changed is None else changed.clone()

    return copied


@contextlib.contextmanager
def answered_by(module: nn.Module, forward: Callable[..., object]) -> Generator[None, None, None]:
    """Inside the context, replace the forward of `module`, whose hooks still run; restore it afterwards."""
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
    """The token position of each column of the running forward pass.

    Attributes:
        positions: counted from the first real token of each text, so that padding on the left does not shift them;
            one row if all texts have the same positions; -1 at padding, which no `Where` reaches.
    """

    positions: Int[Tensor, "#batch pos"] = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.long))

    def follow(self, trunk: nn.Module) -> RemovableHandle:
        """Update `positions` before every forward of `trunk`, the model without its head."""
        names = list(inspect.signature(trunk.forward).parameters)

        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self.positions = token_positions(dict(zip(names, args, strict=False)) | kwargs)

        return trunk.register_forward_pre_hook(hook, with_kwargs=True)

    def inside(self, tokens: Where) -> Bool[Tensor, "#batch pos"]:
        """Which columns hold a token that `tokens` selects."""
        at = self.positions
        if isinstance(tokens, Positions):
            return torch.isin(at, torch.tensor(tokens.at, dtype=at.dtype, device=at.device))
        inside = at >= tokens.start
        return inside if tokens.stop is None else inside & (at < tokens.stop)


def token_positions(call: Mapping[str, object]) -> Int[Tensor, "#batch pos"]:
    """The positions of a forward pass, as in `Clock`, from the arguments of the trunk's forward.

    They follow from `position_ids` and the attention mask where given, else from the number of tokens in the cache. The
    cache is any argument with `get_seq_length`, since its name differs (transformers 5.24 calls it `cache`, earlier
    versions `past_key_values`).
    """
    ids = call.get("input_ids")
    given = cast("Tensor", call.get("inputs_embeds") if ids is None else ids)
    width = given.shape[1]
    mask, at = call.get("attention_mask"), call.get("position_ids")
    real = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if isinstance(at, Tensor) and at.ndim == 2 and real is None:
        return at
    counts = (getattr(value, "get_seq_length", None) for value in call.values())
    counted = next((int(cast("int", count())) for count in counts if callable(count)), None)
    if real is None:
        seen = counted or 0
        return torch.arange(seen, seen + width, device=given.device)[None]
    seen = real.shape[1] - width if counted is None else counted
    if not (isinstance(at, Tensor) and at.ndim == 2):
        at = (real.long().cumsum(dim=1) - 1)[:, seen : seen + width]
    at = at.expand(len(real), -1)
    return at.masked_fill(real[:, seen : seen + width] == 0, -1)


class Timed(dict[Point, Change]):
    """Functions by point that share a clock, for functions that act only at some token positions."""

    def __init__(self, changes: Mapping[Point, Change], clock: Clock) -> None:
        """Hold `clock`, which `LanguageModel.intervening` updates before every forward pass."""
        super().__init__(changes)
        self.clock = clock


def at_tokens(tokens: Where, clock: Clock, change: Change) -> Change:
    """`change`, applied only at the chosen token positions."""
    if tokens == EVERYWHERE:
        return change

    def at_positions(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        inside = clock.inside(tokens).to(h.device).expand(h.shape[:2])
        if not inside.any():
            return h
        out = h.clone()
        out[inside] = change(h[inside][None])[0]
        return out

    return at_positions


def spliced(point: Point, fn: Change) -> Change:
    """`fn`, with a check that its result has the shape of the hidden state; cast to its dtype and device.

    Raises:
        WidthMismatch: during a pass, when the shape differs.
    """

    def splice(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        new = fn(h)
        if new.shape != h.shape:
            raise WidthMismatch(
                f"the function spliced in at {point} returned shape {tuple(new.shape)} for a hidden state of "
                f"shape {tuple(h.shape)}. Return one of the same shape."
            )
        return new.to(h)

    return splice


@dataclass
class Placed:
    """A tensor, with a cached copy on the device and in the dtype last needed."""

    tensor: Tensor
    _copy: Tensor | None = field(default=None, init=False)

    def like(self, h: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on the device of `h`, in the dtype of `h` unless another is given."""
        dtype = h.dtype if dtype is None else dtype
        if self._copy is None or self._copy.dtype != dtype or self._copy.device != h.device:
            self._copy = self.tensor.to(device=h.device, dtype=dtype)
        return self._copy


def negative_zeros(change: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
    """`change` with each 0 as -0.0, which changes no bit when added to a number: adding 0.0 turns -0.0 into 0.0."""
    return change.masked_fill(change == 0, -0.0)


class FeatureContribution:
    """What some features of a dictionary contribute to its reconstruction: a V, in the space of its tap.

    V are the dictionary's decoder rows in their stored scale, and a the activations from its own encoder. Only the
    chosen features are encoded, except where features compete, as under TopK. Where the dictionary normalises each
    token, the contribution is scaled back as `decode` does.
    """

    def __init__(self, dictionary: Dictionary, features: Sequence[int]) -> None:
        """Hold the encoder and decoder rows of `features`, indices into the dictionary."""
        index = torch.tensor(features, device=dictionary.W_dec.device)
        self._rows = Placed(dictionary.W_dec[index])
        self._columns = Placed(index) if isinstance(dictionary.activation, COMPETING) else None
        self._encoder, self._device = dictionary, dictionary.W_dec.device
        if not isinstance(dictionary.activation, COMPETING):
            # a dictionary of these features alone: its activations are those columns of the whole one's
            self._encoder = Dictionary(
                dictionary.site,
                tap=dictionary.tap,
                W_enc=dictionary.W_enc[index],
                b_enc=dictionary.b_enc[index],
                W_dec=dictionary.W_dec[index],
                b_dec=dictionary.b_dec,
                activation=dictionary.activation.of(index),
                preprocessing=dictionary.preprocessing,
                training=dictionary.training,
            )

    def activations(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch k"]:
        """Activations of the chosen features, in the dtype of the dictionary.

        Raises:
            WidthMismatch: when `h` is not as wide as the dictionary.
        """
        if h.device != self._device:
            self._encoder, self._device = self._encoder.to(h.device), h.device
        x = h.to(self._rows.tensor.dtype)
        acts = self._encoder.encode_unchecked(x)
        return acts if self._columns is None else acts[..., self._columns.like(x, torch.long)]

    def rescaling(self, h: Float[Tensor, "*batch d_in"], factors: Placed | float) -> Float[Tensor, "*batch d_in"]:
        """(r - 1) a V, which rescales the features by r when added to `h`; -0.0 where nothing is added.

        Computed in the dtype of the dictionary, returned in that of `h`.

        Args:
            h: the hidden state that the dictionary reads.
            factors: r - 1, one for all features or `Float[Tensor, "#*batch k"]`.

        Raises:
            WidthMismatch: when `h` is not as wide as the dictionary.
        """
        x = h.to(self._rows.tensor.dtype)
        acts = self.activations(x)
        acts = acts * factors.like(x) if isinstance(factors, Placed) else acts
        change = acts @ self._rows.like(x) * self._encoder.scale(x)
        change = change if isinstance(factors, Placed) else factors * change
        return negative_zeros(change).to(h)


class ActiveAddition:
    """s V for some features of a dictionary, each at the tokens where it is active; V are unit rows in the stream."""

    def __init__(self, dictionary: Dictionary, features: Sequence[FeatureId], model: AttentionWriter) -> None:
        """Hold the encoder rows and the directions of `features`."""
        self._contribution = FeatureContribution(dictionary, indices(features, dictionary))
        self._rows = Placed(stream_units(dictionary, features, model))

    def adding(self, h: Float[Tensor, "*batch d_model"], strengths: Placed) -> Float[Tensor, "*batch d_model"]:
        """The vector to add to `h` at each token; -0.0 where nothing is added.

        Args:
            h: the hidden state that the dictionary reads.
            strengths: s, `Float[Tensor, "#*batch k"]`.
        """
        on = self._contribution.activations(h) > 0
        return negative_zeros((on * strengths.like(h)) @ self._rows.like(h))


def keeping_norm(change: Change) -> Change:
    """`change`, with each token's result rescaled to its original norm; tokens it leaves unchanged keep every bit."""

    def kept(h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return at_norm_of(h, change(h))

    return kept


def at_norm_of(
    h: Float[Tensor, "*batch d_model"], new: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """`new` rescaled to the norm of `h` at each token; unscaled where the two are equal or `new` is 0."""
    own, length = (torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) for x in (h, new))
    alike = (new == h).all(dim=-1, keepdim=True) | (length == 0)
    return torch.where(alike, new, (new * (own / length)).to(new.dtype))


def rescaling(edit: Rescale, dictionary: Dictionary) -> Change:
    """h + (r - 1) a V, with a from the dictionary's own encoder on the incoming h.

    Features with r = 1 are left out. Where none remains or none is active, no bit of h changes.

    Raises:
        UnknownFeature: for an index outside the dictionary.
    """
    moved = [(i, r) for i, r in zip(indices(edit.features, dictionary), edit.factors, strict=True) if r != 1]
    if not moved:
        return _unchanged
    contribution = FeatureContribution(dictionary, [i for i, _ in moved])
    each = Placed(torch.tensor([r - 1.0 for _, r in moved], dtype=torch.float64))
    factors = each if isinstance(edit.r, tuple) else edit.r - 1.0
    return lambda h: h + contribution.rescaling(h, factors)


def _unchanged(h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
    return h


def added(
    edit: Add | AddVector, dictionaries: Mapping[Site, Dictionary] | None, model: AttentionWriter
) -> Float[Tensor, " d_model"]:
    """The vector that an edit adds to the residual stream, in float32 on the CPU.

    For features it is s V, with V their unit rows in the stream; the model projects rows of z.

    Raises:
        InvalidArgument: for features without dictionaries, or a feature whose decoder row has no direction.
        UnknownSite: for features without a dictionary at their site.
        UnknownFeature: for an index outside the dictionary.
        WidthMismatch: for a dictionary on z that is not this model's, or a vector whose width is not the stream's.
    """
    if isinstance(edit, AddVector):
        width = len(model.attention_writer(edit.site.layer)[0])
        if len(edit.vector) != width:
            raise WidthMismatch(
                f"the vector to add at {edit.site} has {len(edit.vector)} values, and the stream is {width} wide. Give "
                "one of its width."
            )
        return torch.tensor(edit.vector, dtype=torch.float32)
    dictionary = dictionary_of(edit, dictionaries).for_model(model)
    strengths = torch.tensor([float(s) for s in edit.strengths.values()])
    return strengths @ stream_units(dictionary, edit.features, model)


def stream_units(
    dictionary: Dictionary, features: Sequence[FeatureId], model: AttentionWriter
) -> Float[Tensor, "k d_model"]:
    """The unit rows of some features in the stream, in float32 on the CPU; the model projects rows of z.

    Raises:
        As `added` does.
    """
    rows = dictionary.finite_rows("W_dec")[indices(features, dictionary)].float()
    return unit_rows(dictionary.project(rows, model).cpu(), features)


def adding(vector: Float[Tensor, " d_model"]) -> Change:
    """h + vector; where the vector is 0, no bit of h changes."""
    if not vector.any():
        return _unchanged
    placed = Placed(negative_zeros(vector))
    return lambda h: h + placed.like(h)


def adding_active(edit: Add, dictionary: Dictionary, model: AttentionWriter) -> Change:
    """h + s V for each feature at the tokens where it is active; other tokens keep every bit.

    Raises:
        As `active_at` and `added` do.
    """
    active_at(edit, dictionary)
    addition = ActiveAddition(dictionary, edit.features, model)
    strengths = Placed(torch.tensor(list(edit.strengths.values()), dtype=torch.float64))
    return lambda h: h + addition.adding(h, strengths)


def dictionary_of(edit: Rescale | Add, dictionaries: Mapping[Site, Dictionary] | None) -> Dictionary:
    """The dictionary at an edit's site.

    Raises:
        InvalidArgument: when `dictionaries` is None.
        UnknownSite: without a dictionary at that site.
    """
    if dictionaries is None:
        raise InvalidArgument(
            f"an edit at {edit.site} needs vectors. Pass dictionaries, a mapping of Site to Dictionary."
        )
    if edit.site not in dictionaries:
        raise UnknownSite(
            f"an edit names {edit.features[0]}, and there is no dictionary at {edit.site}. Pass one for it."
        )
    return dictionaries[edit.site]


def rescaled_at(edit: Rescale, dictionary: Dictionary) -> Point:
    """Where a `Rescale` acts: on the tensor its dictionary reads.

    Raises:
        InvalidArgument: for a transcoder, which contributes nothing to the tensor it reads; for a dictionary that reads
            a tensor before a norm, where no edit acts.
    """
    if dictionary.is_transcoder:
        raise InvalidArgument(
            f"{edit.features[0]} belongs to a transcoder: it reads {dictionary.tap.value} and writes {edit.site}, so "
            "it has no share in a hidden state that could be rescaled. Use an SAE's features, or Add."
        )
    point = dictionary.point
    if point.view is not View.OWN:
        raise InvalidArgument(
            f"{edit.features[0]} is read at {point}, before a norm, where no edit acts. Use Add, which acts on "
            "the stream."
        )
    return point


def active_at(edit: Add, dictionary: Dictionary) -> Point:
    """Where an `Add` with `only_active` acts: on the tensor its dictionary reads, which must be the site itself.

    Raises:
        InvalidArgument: for a dictionary that reads something else, such as z or an MLP's input.
    """
    point = Point.at(edit.site)
    if dictionary.is_transcoder or dictionary.point != point:
        raise InvalidArgument(
            f"{edit.features[0]} reads {dictionary.point} and is added at {point}: where it is active is not known "
            "there. Add it at every token, or use features that read the stream."
        )
    return point


def resolve(
    edits: Iterable[Edit], dictionaries: Mapping[Site, Dictionary] | None, model: AttentionWriter, clock: Clock
) -> list[tuple[Point, Change]]:
    """The points where edits act, with the functions that apply them there, in the edits' order at each point.

    `Rescale` acts on the tensor its dictionary reads, `Add` on the site itself. Consecutive additions at a point with
    the same tokens and the same `keep_norm` become one function that adds one vector.

    Raises:
        InvalidArgument: without dictionaries; for a `Rescale` of a transcoder's features.
        UnknownSite: without a dictionary at an edit's site.
        UnknownFeature: for an index outside the dictionary.
        WidthMismatch: for a dictionary on z that is not this model's.
    """
    steps: dict[Point, list[tuple[Where, bool, Change | Tensor]]] = {}
    for edit in edits:
        if isinstance(edit, Rescale):
            dictionary = dictionary_of(edit, dictionaries).for_model(model)
            here = steps.setdefault(rescaled_at(edit, dictionary), [])
            here.append((edit.tokens, False, rescaling(edit, dictionary)))
            continue
        here = steps.setdefault(Point.at(edit.site), [])
        if isinstance(edit, Add) and edit.only_active:
            change = adding_active(edit, dictionary_of(edit, dictionaries).for_model(model), model)
            here.append((edit.tokens, edit.keep_norm, change))
            continue
        vector, how = added(edit, dictionaries, model), (edit.tokens, edit.keep_norm)
        last = here[-1] if here else None
        if last and isinstance(last[2], Tensor) and last[:2] == how:
            here[-1] = (*how, last[2] + vector)
        else:
            here.append((*how, vector))
    found: list[tuple[Point, Change]] = []
    for point, here in steps.items():
        for tokens, keeps, step in here:
            change = adding(step) if isinstance(step, Tensor) else step
            found.append((point, at_tokens(tokens, clock, keeping_norm(change) if keeps else change)))
    return found


def indices(features: Sequence[FeatureId], dictionary: Dictionary) -> list[int]:
    """The row indices of features in the dictionary at their site.

    Raises:
        UnknownFeature: for an index outside the dictionary.
    """
    n_features = dictionary.n_features
    outside = [str(feature) for feature in features if feature.index >= n_features]
    if outside:
        raise UnknownFeature(
            f"{', '.join(outside)} lie outside the dictionary at {features[0].site}, which has {n_features} "
            f"features. Indices run from 0 to {n_features - 1}."
        )
    return [feature.index for feature in features]
