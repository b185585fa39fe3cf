"""Rerun single blocks of a model on changed hidden states, next to the key-value cache of a clean pass.

A clean pass of one text records the arguments, keys and values of every block, and the hidden states at the requested
layers. The model's own modules then compute two things:

1. `rows`: block L at single tokens, many variants in one call. All variants, of the same and of different tokens,
   lie side by side along the sequence axis; a mask lets each see the clean keys and values of the tokens before its
   own (within the layer's sliding window) and its own new ones, but no other variant. So the clean keys and values
   are shared, not copied, and rotary angles are picked by token.
2. `onward`: block L on the tokens from t on, many variants in a batch, against the clean keys and values of the
   tokens before t, which no change at t can reach.

No part of a transformer is reimplemented here: grouped queries, soft caps, sandwich norms, rotary variants and
parallel parts are whatever the model's modules do. Attention must take a mask (`sdpa` or `eager`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from saeflow.errors import InvalidArgument
from saeflow.sources.architectures import SAE_TAPS, Point, Tap, named
from saeflow.sources.decoding import check_context
from saeflow.sources.hooks import Change, answered_by, watch_input, watch_output
from saeflow.sources.model import LanguageModel
from saeflow.sources.tokens import Tokens
from saeflow.sources.weights import refuse_infinite

_MASKED_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The tensors of one block in the clean pass, without the batch axis.

    Attributes:
        entry: the block's input, `Float[Tensor, "pos d_model"]`: the residual stream of the layer before.
        attention: the output of its attention module, before any norm.
        taps: the tensor at each tap, `Float[Tensor, "pos width"]`.
    """

    entry: Tensor
    attention: Tensor
    taps: Mapping[Tap, Tensor]


class _Beside:
    """A stand-in for a block's cache: appends new keys and values to the clean ones without changing those."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._clean = (keys, values)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """The clean keys and values, followed by the new ones."""
        old_keys, old_values = (clean.expand(len(keys), -1, -1, -1) for clean in self._clean)
        return torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)

    def get_seq_length(self, *_: object) -> int:
        """0. Llama 4 scales its queries by it, by a factor that is 1 in texts shorter than `floor_scale`."""
        return 0


class CleanPass:
    """One forward pass of one text, whose blocks can be rerun. See the module docstring.

    Attributes:
        n_tokens: the text's length, the begin-of-text token included.
        stages: layer -> the tensors of its block, for the requested layers.
        final: the residual stream after the last block, `Float[Tensor, "pos d_model"]`.
    """

    def __init__(self, model: LanguageModel, tokens: Tokens, layers: Iterable[int]) -> None:
        """Run the text once, without the head.

        Raises:
            InvalidArgument: for anything but one text, for padding or a text beyond the model's context, for a model
                whose attention takes no mask or takes a key's index for its position, or for hidden states that are
                NaN or infinite.
            UnknownSite: for a layer the model does not have.
        """
        if len(tokens.input_ids) != 1 or not bool(tokens.attention_mask.all()):
            raise InvalidArgument(
                f"a clean pass takes one text without padding, not {len(tokens.input_ids)} of lengths "
                f"{tokens.lengths} in {tokens.input_ids.shape[1]} columns. Tokenize each text alone."
            )
        kind = str(getattr(model.trunk.config, "_attn_implementation", None))
        if kind not in _MASKED_ATTENTION:
            raise InvalidArgument(
                f"attention of kind {kind!r} takes no mask of single tokens. Load the model with "
                "attn_implementation='sdpa' or 'eager'."
            )
        check_context(model.hf_model, tokens.input_ids.shape[1])
        _refuse_positions_by_index(model, tokens.input_ids.shape[1])
        self._model, self._tokens = model, tokens
        self.n_tokens = tokens.input_ids.shape[1]
        self._calls: list[dict[str, object]] = []
        kept: dict[tuple[int, str], Tensor] = {}
        cache = DynamicCache()
        with contextlib.ExitStack() as stack, torch.no_grad():
            for layer in range(model.n_layers):
                hook = model.block(layer).register_forward_pre_hook(self._note_call, with_kwargs=True)
                stack.callback(hook.remove)
            for layer in sorted(set(layers)):
                block = model.block(layer)
                attention = block.get_submodule(model.architecture.attention)
                stack.callback(watch_input(block, _keeper(kept, (layer, "entry"))).remove)
                stack.callback(watch_output(attention, _keeper(kept, (layer, "attention"))).remove)
                for tap in SAE_TAPS:
                    stack.callback(model.watch(Point(layer, tap), _keeper(kept, (layer, tap.value))).remove)
            last = watch_output(model.block(model.n_layers - 1), _keeper(kept, (-1, "final")))
            stack.callback(last.remove)
            # the argument's name differs between releases of transformers
            arguments = inspect.signature(model.trunk.forward).parameters.values()
            cache_name = next(one.name for one in arguments if "Cache" in str(one.annotation))
            out = model.trunk(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=True, **{cache_name: cache}
            )
        for (layer, what), h in kept.items():
            refuse_infinite(f"hidden states of layer {layer} ({what})" if layer >= 0 else "the last hidden states", h)
        self._output_type = cast("Callable[..., object]", type(out))
        self._keys_values: list[tuple[Tensor, Tensor]] = [
            (kv.keys, kv.values) for kv in cast("list[Any]", cache.layers)
        ]
        self._visible = self._visibility()
        self.final: Float[Tensor, "pos d_model"] = kept[-1, "final"]
        self.stages: dict[int, Stages] = {
            layer: Stages(
                kept[layer, "entry"], kept[layer, "attention"], {tap: kept[layer, tap.value] for tap in SAE_TAPS}
            )
            for layer in sorted(set(layers))
        }

    @property
    def n_vocabulary(self) -> int:
        """The size of the vocabulary: how many logits each token has."""
        return int(self._model.hf_model.config.get_text_config().vocab_size)

    def rows(
        self,
        layer: int,
        h: Float[Tensor, "n d_model"],
        positions: Int[Tensor, " n"],
        changes: Mapping[Tap, Change],
        *,
        attend: bool = True,
        seen: Int[Tensor, " m"] | None = None,
    ) -> dict[Tap, Float[Tensor, "n width"]]:
        """Run block `layer` on `n` variants of single tokens and return its tensor at each tap.

        Args:
            layer: any layer; one of the requested ones when `attend` is False.
            h: what each variant reads from the residual stream.
            positions: the token position of which each row is a variant.
            changes: by tap, a function of the variants' tensor `[n width]` there, applied during the pass.
            attend: pass False where `h` is the clean stream: the attention output is then known from the clean pass,
                and only what follows it is computed.
            seen: for each of the last `m` variants, the row of a variant of an earlier token that it sees instead
                of that token.

        Raises:
            UnknownSite: for a layer the model does not have.
        """
        block, architecture = self._model.block(layer), self._model.architecture
        kept: dict[Tap, Tensor] = {}
        call = self._call_rows(layer, positions, h, seen) if attend else self._call(layer, None, positions, None)
        with contextlib.ExitStack() as stack, torch.no_grad():
            for tap in SAE_TAPS:
                act = _changer(tap, changes.get(tap), kept)
                stack.callback(self._model.watch(Point(layer, tap), act).remove)
            if not attend:
                forward = self._recall_attention(layer, positions, through_z=Tap.Z in changes)
                stack.enter_context(answered_by(block.get_submodule(architecture.attention), forward))
            block(h[None], **call)
        return kept

    def onward(
        self, layer: int, h: Float[Tensor, "batch pos d_model"], start: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """The output of block `layer` on variants of the tokens from `start` on, as many tokens as `h` holds.

        Raises:
            UnknownSite: for a layer the model does not have.
        """
        stop = start + h.shape[1]
        keys, values = self._keys_values[layer]
        beside = _Beside(keys[:, :, :start], values[:, :, :start])
        mask = _additive(self._visible[layer][start:stop, :stop], h)
        columns = torch.arange(start, stop, device=h.device)
        with torch.no_grad():
            out = self._model.block(layer)(h, **self._call(layer, beside, columns, mask))
        return out if isinstance(out, Tensor) else out[0]

    def logits(self, h: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """The logits for hidden states after the last block, by the final norm and the model's own head."""
        trunk = self._model.trunk
        norm = trunk.get_submodule(named(self._model.architecture.final_norm, "norm"))

        def answer(*_: object, **__: object) -> object:
            return self._output_type(last_hidden_state=norm(h)[:, None])

        ids = self._tokens.input_ids[:, :1].expand(len(h), 1)
        with torch.no_grad(), answered_by(trunk, answer):
            return self._model.hf_model(input_ids=ids, use_cache=False).logits[:, 0]

    def _recall_attention(self, layer: int, positions: Int[Tensor, " n"], *, through_z: bool) -> Callable[..., object]:
        """A forward giving the clean attention output; `through_z` recomputes it from z, so that hooks can change z."""
        stages = self.stages[layer]

        def recall(*_: object, **__: object) -> object:
            if not through_z:
                return stages.attention[positions][None], None
            o_proj = self._model.block(layer).get_submodule(self._model.architecture.module(Tap.Z))
            return o_proj(stages.taps[Tap.Z][positions][None]), None

        return recall

    def _note_call(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Record a block's arguments by name, positional or not, except the hidden states."""
        bound = inspect.signature(block.forward).bind(*args, **kwargs)
        named: dict[str, object] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        named.pop("hidden_states", None)
        # transformers omits the mask, or passes None, for plain causal attention; reruns always need one
        named.setdefault("attention_mask", None)
        self._calls.append(named)

    def _call(
        self, layer: int, cache: _Beside | None, columns: Int[Tensor, " n"], mask: Tensor | None
    ) -> dict[str, object]:
        """The block's recorded arguments, restricted to the tokens `columns`, with another cache and mask."""
        call: dict[str, object] = {}
        for name, value in self._calls[layer].items():
            if isinstance(value, Cache):
                call[name] = cache
            elif name == "attention_mask":
                call[name] = mask
            elif name.startswith("position_embeddings") and isinstance(value, Tensor):
                call[name] = value[:, columns]
            elif name.startswith("position_embeddings"):
                call[name] = tuple(angles[:, columns] for angles in cast("tuple[Tensor, ...]", value))
            elif name in {"position_ids", "cache_position"} and isinstance(value, Tensor):
                call[name] = value[..., columns]
            else:
                call[name] = value
        return call

    def _call_rows(
        self, layer: int, positions: Int[Tensor, " n"], h: Tensor, seen: Int[Tensor, " m"] | None
    ) -> dict[str, object]:
        # keys: the clean ones of tokens 0 to width - 1, then one of each variant
        n, width = len(h), int(positions.max())
        keys, values = self._keys_values[layer]
        visible = torch.zeros(n, width + n, dtype=torch.bool, device=h.device)
        visible[:, :width] = self._visible[layer][positions, :width]
        columns = torch.arange(width, device=h.device)
        visible[:, :width] &= columns < positions[:, None]
        visible[:, width:].fill_diagonal_(fill_value=True)
        if seen is not None:  # swap the clean key of that token for the key of its variant
            readers = torch.arange(n - len(seen), n, device=h.device)
            visible[readers, width + seen] = visible[readers, positions[seen]]
            visible[readers, positions[seen]] = False
        beside = _Beside(keys[:, :, :width], values[:, :, :width])
        return self._call(layer, beside, positions, _additive(visible, h))

    def _visibility(self) -> list[Bool[Tensor, "pos pos"]]:
        """For each layer, which tokens each token can attend to; layers with the same mask share a tensor."""
        made: dict[int, Tensor] = {}
        masks = [cast("Tensor | None", call["attention_mask"]) for call in self._calls]
        for mask in masks:
            if mask is None:  # plain causal attention
                device = self._tokens.input_ids.device
                made[id(mask)] = torch.ones(self.n_tokens, self.n_tokens, dtype=torch.bool, device=device).tril()
            elif id(mask) not in made:
                # visible keys are True in a boolean mask, and 0 in an additive one
                made[id(mask)] = mask[0, 0] if mask.dtype is torch.bool else mask[0, 0] == 0
        for call in self._calls:
            call["attention_mask"] = None  # free the masks: every rerun gets its own
        return [made[id(mask)] for mask in masks]


def _refuse_positions_by_index(model: LanguageModel, n_tokens: int) -> None:
    """Refuse attention that takes a key's index in the list for its token position: here the two differ.

    Raises:
        InvalidArgument: with the model's setting.
    """
    config: Any = model.hf_model.config.get_text_config()
    why = ""
    if "local" in (getattr(config, "attention_layers", None) or ()):
        why = "local attention (attention_layers)"
    elif getattr(config, "alibi", False):
        why = "ALiBi (alibi)"
    elif getattr(config, "attn_temperature_tuning", False) and n_tokens >= int(config.floor_scale):
        why = f"queries scaled from token {config.floor_scale} on (attn_temperature_tuning)"
    if why:
        raise InvalidArgument(
            f"this {model.architecture.family} model has {why}, by which attention counts its keys itself, and blocks "
            f"are not run again on single tokens of a text of {n_tokens}. Edit the whole pass with model.intervening, "
            "which is right for every model."
        )


def _additive(visible: Bool[Tensor, "queries keys"], like: Tensor) -> Float[Tensor, "1 1 queries keys"]:
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(visible, zero, torch.finfo(like.dtype).min)[None, None]


def _keeper(kept: dict[tuple[int, str], Tensor], key: tuple[int, str]) -> Callable[[Tensor], None]:
    def keep(h: Tensor) -> None:
        kept[key] = h.detach()[0]

    return keep


def _changer(tap: Tap, change: Change | None, kept: dict[Tap, Tensor]) -> Callable[[Tensor], Tensor | None]:
    def act(h: Tensor) -> Tensor | None:
        if change is None:
            kept[tap] = h[0]
            return None
        kept[tap] = change(h[0])
        return kept[tap][None]

    return act
