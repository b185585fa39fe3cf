"""A Hugging Face language model whose sites can be read and changed.

`capture` reads any set of sites in one forward pass; `intervening` applies edits to every pass made inside its
context, for the prompt and for each decoded token. Hooks exist only inside those calls. Module paths are in
`architectures.py`, the hooks in `hooks.py`, the edits in `saeflow.interventions`.

Texts are given as `Tokens`, padded on the right: under a causal mask real tokens then never see the padding, so each
text in a batch gives the same result as on its own, up to the rounding of matrix products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from saeflow.engines import device_of_worker
from saeflow.errors import InvalidArgument, UnknownSite, WidthMismatch
from saeflow.ids import Part, Site
from saeflow.interventions import Edit
from saeflow.plain_types import as_html
from saeflow.sources import hooks
from saeflow.sources.architectures import Architecture, Point, PointLike, Tap, View, architecture_of, named
from saeflow.sources.captured import Captured
from saeflow.sources.decoding import check_context, complete, sampling_config, seeded
from saeflow.sources.devices import known_device
from saeflow.sources.dictionary import Dictionary, prepend_bos_of
from saeflow.sources.hooks import Change, Clock, Timed, Watcher, resolve, spliced
from saeflow.sources.library import load_dictionaries
from saeflow.sources.modules import LinearMaps, applied, constant_of, device_of, gain_of
from saeflow.sources.packaged_models import fetched_model, name_of_folder
from saeflow.sources.pretrained import fetch
from saeflow.sources.site_map import TEXT, SiteMap, checked, mapped
from saeflow.sources.tokens import Spelling, Tokens
from saeflow.sources.weights import refuse_infinite
from saeflow.sources.wrapped import model_inside


class _Stop(Exception):
    """Raised in a hook to end a pass once everything requested has been read."""


class TokenLogit(NamedTuple):
    """A token that a direction promotes, and by how much."""

    token: str
    id: int
    logit: float


class LoadArguments(NamedTuple):
    """The arguments a model was loaded with: another process gets these, never the weights."""

    name: str
    """For a folder, its absolute path, since another process may run elsewhere."""
    device: str
    dtype: torch.dtype
    prepend_bos: bool | None


class LanguageModel:
    """A causal language model from Hugging Face and its tokenizer, with named sites.

    The model is put into evaluation mode, and otherwise left as it is.

    Raises:
        UnknownArchitecture: when the sites of its `config.model_type` are not mapped.
        InvalidArgument: for anything but a transformers model or a wrapper that contains one, and for a site map
            that does not fit the model.
    """

    def __init__(
        self,
        hf_model: nn.Module | object,
        tokenizer: PreTrainedTokenizerBase | None = None,
        loaded_by: LoadArguments | None = None,
        *,
        prepend_bos: bool | None = None,
        sites: SiteMap | None = None,
    ) -> None:
        """Take a model that is already loaded.

        Args:
            hf_model: a transformers model, in any dtype, quantised, adapted, sharded or offloaded; or a wrapper of
                peft, nnsight or TransformerLens (its bridge) around one.
            tokenizer: its tokenizer; the wrappers of nnsight and TransformerLens bring theirs.
            loaded_by: the arguments with which `load_model` loads the same model.
            prepend_bos: whether texts begin with the begin-of-text token; None for the tokenizer's default.
            sites: the module paths of a family that is not mapped, in the form of `site_map`.
        """
        inside, self.tokenizer = model_inside(hf_model, tokenizer)
        self.hf_model: PreTrainedModel = inside.eval()
        self.architecture: Architecture = architecture_of(inside.config) if sites is None else mapped(inside, sites)
        self._by_map = sites is not None
        self._loaded_by = loaded_by
        self._prepend_bos = prepend_bos
        self._maps = LinearMaps()
        self._trunk = inside.get_submodule(self.architecture.trunk)
        self._blocks = cast("nn.ModuleList", self._trunk.get_submodule(self.architecture.blocks))
        if isinstance(sites, Mapping):
            self.architecture = checked(self.architecture, self.n_layers, partial(self.capture, self.tokenize([TEXT])))

    _repr_html_ = as_html

    def __repr__(self) -> str:
        """Name, size, dtype and device."""
        size = f"{self.n_layers} layers, d_model {self.d_model:,}"
        kind = str(self.hf_model.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name or type(self.hf_model).__name__!r}, {size}, {kind} on {self.device})"

    @property
    def name(self) -> str:
        """The name or path the model was loaded from; empty for one built in memory."""
        path = str(self.hf_model.config.name_or_path)
        return name_of_folder(path) or path

    def __reduce__(self) -> tuple[Callable[..., LanguageModel], tuple[object, ...]]:
        """Pickle the model as its load arguments. Raises InvalidArgument for a model built in memory."""
        if self._loaded_by is None:
            raise InvalidArgument(
                "the model was built in memory, and another process cannot load it by name. Save it with its tokenizer "
                "(save_pretrained) and load the folder with load_model, or take the engine here."
            )
        return _load_in_worker, (*self._loaded_by[:3], self._prepend_bos, self.architecture if self._by_map else None)

    @cached_property
    def prepend_bos(self) -> bool:
        """Whether `tokenize` begins texts with the begin-of-text token: as requested, else the tokenizer's default."""
        bos = cast("int | None", self.tokenizer.bos_token_id)
        if bos is None or self._prepend_bos is not None:
            return bos is not None and bool(self._prepend_bos)
        return cast("list[int]", self.tokenizer("a")["input_ids"])[:1] == [bos]

    def as_trained(self, dictionaries: Mapping[Site, Dictionary]) -> LanguageModel:
        """The same model with texts begun as in the dictionaries' training, where a file states how.

        An explicit choice at loading is kept. Opens dictionaries until one states it, since those of a release were
        trained alike. Damaged files are skipped here and raise errors when they are used.
        """
        if self._prepend_bos is not None:
            return self
        begun = prepend_bos_of(dictionaries)
        if begun is None or begun == self.prepend_bos:
            return self
        sites = self.architecture if self._by_map else None
        return LanguageModel(self.hf_model, self.tokenizer, self._loaded_by, prepend_bos=begun, sites=sites)

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self._blocks)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.hf_model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """The device the model computes on: that of its weights, or where accelerate moves offloaded ones.

        Raises:
            InvalidArgument: for weights that are placeholders without values.
        """
        return device_of(self.hf_model) or self.hf_model.device

    @cached_property
    def spelling(self) -> Spelling:
        """Decodes token ids to text, as they read inside a longer text."""
        return Spelling(self.tokenizer)

    @property
    def parallel(self) -> bool:
        """Whether the MLP reads the block's input rather than the stream after attention."""
        return self.architecture.parallel

    @property
    def trunk(self) -> nn.Module:
        """The model without its head, from token ids to the hidden states after the final norm."""
        return self._trunk

    def block(self, layer: int) -> nn.Module:
        """The module of one layer; its parts are at the paths of `architecture`.

        Raises:
            UnknownSite: for a layer the model does not have.
        """
        if not 0 <= layer < self.n_layers:
            raise UnknownSite(
                f"the model has no layer {layer}. Its {self.n_layers} layers are 0 to {self.n_layers - 1}."
            )
        return self._blocks[layer]

    def tokenize(self, texts: Sequence[str], *, add_bos: bool | None = None, max_length: int | None = None) -> Tokens:
        """The token ids of texts, padded on the right.

        Args:
            texts: one or more texts.
            add_bos: begin each with the tokenizer's begin-of-text token, if it has one; None for
                `self.prepend_bos`. The first position behaves like no other: choose as in the SAEs' training.
            max_length: cut each to this many tokens, the begin-of-text token included.

        Raises:
            InvalidArgument: for no texts, a single string, a text without tokens, or a `max_length` below 1.
        """
        if isinstance(texts, str) or not texts:
            raise InvalidArgument(f"tokenize takes a list of one or more texts, not {texts!r}. Wrap it in a list.")
        if max_length is not None and max_length < 1:
            raise InvalidArgument(f"max_length = {max_length} leaves no token. Give 1 or more, or None.")
        wanted = self.prepend_bos if add_bos is None else add_bos
        bos = cast("int | None", self.tokenizer.bos_token_id) if wanted else None
        start = [] if bos is None else [bos]
        rows: list[list[int]] = []
        for text in texts:
            ids = cast("list[int]", self.tokenizer(text, add_special_tokens=False)["input_ids"])
            rows.append(((ids if ids[:1] == start else start + ids) if start else ids)[:max_length])
            if not rows[-1]:
                raise InvalidArgument(f"the text {text!r} gives no token. Leave it out, or set add_bos.")
        width = max(map(len, rows))
        pad = self.pad_id
        input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        return Tokens(input_ids, mask)

    def capture(
        self,
        tokens: Tokens,
        sites: Iterable[PointLike],
        *,
        inputs: Iterable[int] = (),
        logits: bool = False,
        stop_after_last: bool = True,
    ) -> Captured:
        """Run the model and keep its hidden states at some sites; inside `intervening`, after the edits.

        Reading changes nothing: the logits are bit-equal to those of the model without hooks. The residual stream is
        read at the output of a block, so the last layer's is before the final norm.

        Args:
            tokens: from `tokenize`.
            sites: sites, or `(layer, Tap.Z)`, or the `point` of a dictionary.
            inputs: layers whose block input is kept too.
            logits: keep the logits, which needs the whole pass.
            stop_after_last: without logits, end the pass once everything has been read.

        Raises:
            UnknownSite: for a layer the model does not have.
            InvalidArgument: for a text beyond the model's context, or for NaN or infinite values at a real token in
                what is kept; the message names the first such point.
        """
        requested = tuple(dict.fromkeys(site if isinstance(site, Site) else Point.at(site) for site in sites))
        wanted: set[Point | int] = {*map(Point.at, requested), *inputs}
        kept: dict[Point | int, Tensor] = {}

        def keep(key: Point | int, h: Tensor) -> None:
            kept[key] = h.detach()
            if stop_after_last and not logits and len(kept) == len(wanted):
                raise _Stop

        out: Tensor | None = None
        with contextlib.ExitStack() as stack, torch.no_grad():
            for key in wanted:
                watch = partial(keep, key)
                hook = self.watch(key, watch) if isinstance(key, Point) else hooks.watch_input(self.block(key), watch)
                stack.callback(hook.remove)
            with contextlib.suppress(_Stop):
                if logits:
                    out = self._logits(tokens)
                else:
                    check_context(self.hf_model, tokens.input_ids.shape[1])
                    self._trunk(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
        for key, h in kept.items():  # in the order of computation
            what = f"at {key}" if isinstance(key, Point) else f"that layer {key} reads"
            refuse_infinite(f"hidden states {what}", h, tokens.attention_mask)
        points = {key: h for key, h in kept.items() if isinstance(key, Point)}
        return Captured(points, requested, {key: h for key, h in kept.items() if isinstance(key, int)}, out)

    @contextlib.contextmanager
    def intervening(
        self,
        edits: Iterable[Edit] | Mapping[Site, Change] | Mapping[Point, Change] | Mapping[PointLike, Change],
        dictionaries: Mapping[Site, Dictionary] | None = None,
    ) -> Generator[None, None, None]:
        """Apply edits in every forward pass made inside the context, by this object or by `hf_model` itself.

        Edits apply in the order given; at one point, each acts on the result of the one before (consecutive `Add`s
        are summed to one vector). A nested `intervening` acts after the outer one. The hooks are removed on exit,
        whatever happened inside.

        Args:
            edits: `Rescale` and `Add`, or a steering plan, which yields them; or functions by point, each taking
                the hidden state `Float[Tensor, "batch pos d_in"]` and returning its replacement.
            dictionaries: where the vectors of `Rescale` and `Add` come from; only the sites named are read.
                None loads those of the release that the edits name, if they name one, as a plan does.

        Raises:
            InvalidArgument: for edits that need dictionaries, without any; for an `Add` of a zero row.
            UnknownFeature: for an index outside its dictionary.
            UnknownSite: for a layer the model does not have, or a site without a dictionary.
            WidthMismatch: for a dictionary, or the result of a function, that does not fit the hidden state.
        """
        clock = edits.clock if isinstance(edits, Timed) else Clock()
        with contextlib.ExitStack() as stack:
            if isinstance(edits, Mapping):
                functions = cast("Mapping[PointLike, Change]", edits)
                changes = [(Point.at(point), spliced(Point.at(point), fn)) for point, fn in functions.items()]
            else:
                if dictionaries is None and (release := str(getattr(edits, "release", ""))):
                    dictionaries = load_dictionaries(release)
                changes = resolve(edits, dictionaries, self, clock)
            stack.callback(clock.follow(self._trunk).remove)
            for point, change in changes:
                stack.callback(self.watch(point, change).remove)
            yield

    def loss(self, tokens: Tokens) -> Float[Tensor, "batch following"]:
        """The loss of each next token in nats; inside `intervening`, with the edits.

        It has one column fewer than `tokens`, and NaN where the next token is padding. `Tokens.loss` computes the same
        from logits already at hand.
        """
        with torch.no_grad():
            return tokens.loss(self._logits(tokens))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        n: int = 1,
    ) -> list[list[str]]:
        """`n` completions of each prompt, without the prompt; inside `intervening`, with the edits.

        Each prompt is run separately and with the same seed, so its completions do not depend on the others. Torch's
        global generator is left as it was. The model's own sampling defaults (top-k, penalties) are not used.

        Args:
            prompts: texts; each is begun as `prepend_bos` says.
            max_new_tokens: stop after this many tokens; the end-of-text token stops earlier.
            temperature: 0 takes the most likely token each time.
            top_p: sample from the smallest set of tokens with at least this much probability.
            seed: completions are a function of the seed, of `n` and of the prompt.
            n: the number of completions of each prompt.

        Raises:
            InvalidArgument: for a setting outside its range, named in the message, or an empty prompt.
        """
        if n < 1:
            raise InvalidArgument(f"n = {n} completions of each prompt. Give 1 or more.")
        config = sampling_config(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, end=self.end_ids, pad=self.pad_id
        )
        completions: list[list[str]] = []
        for prompt in prompts:
            tokens = self.tokenize([prompt])
            with torch.no_grad(), seeded(seed, self.device):
                ids = complete(
                    self.hf_model, tokens.input_ids.expand(n, -1), tokens.attention_mask.expand(n, -1), config
                )
            rows = cast("list[list[int]]", ids.tolist())
            completions.append([self.spelling.text(row, skip_special_tokens=True) for row in rows])
        return completions

    def unembed(self, directions: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """The change of the logits by a small step along each direction, up to one positive factor per token.

        Only the direct path counts: through the final norm's gain (and, for a LayerNorm, its centring) and the
        unembedding. A soft cap on the logits, as in Gemma 2, preserves their order and is left out.

        Raises:
            WidthMismatch: when the directions are not as wide as the stream.
        """
        if directions.shape[1] != self.d_model:
            raise WidthMismatch(
                f"directions of width {directions.shape[1]} are not in the residual stream, which has width "
                f"{self.d_model}. Take those of a dictionary on z from dictionary.directions(model)."
            )
        norm = self._trunk.get_submodule(named(self.architecture.final_norm, "norm"))
        gain = gain_of(norm, self.d_model, self.hf_model.dtype, centred=self.architecture.centred)
        h = directions.to(gain)
        if self.architecture.centred:
            h = h - h.mean(dim=-1, keepdim=True)
        head = cast("nn.Module", self.hf_model.get_output_embeddings())
        return applied(head, h * gain, self.hf_model.dtype)

    def logit_lens(self, directions: Float[Tensor, "n d_model"], k: int = 10) -> list[list[TokenLogit]]:
        """The `k` tokens that each direction promotes most, best first.

        Raises:
            InvalidArgument: for a `k` below 1 or above the size of the vocabulary.
            WidthMismatch: when the directions are not as wide as the stream.
        """
        logits = self.unembed(directions)
        if not 1 <= k <= logits.shape[1]:
            raise InvalidArgument(f"k = {k} tokens of a vocabulary of {logits.shape[1]}. Give 1 to {logits.shape[1]}.")
        best = logits.float().topk(k, dim=-1)
        return [
            [TokenLogit(self.spelling.token(i), i, value) for i, value in zip(ids, values, strict=True)]
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def attention_writer(self, layer: int) -> tuple[Float[Tensor, "d_model d_in"], Float[Tensor, " d_model"] | None]:
        """`W_O` and the gain by which attention writes a direction v of `z` into the stream: `(W_O v) * gain`.

        The gain is that of the sandwich norm, None for models without one. The norm's division by the root mean
        square is one positive factor per token, so the direction is exact without data.

        Both are found by running the modules, so their weights may be in 8 or 4 bits, adapted or offloaded.

        Raises:
            UnknownSite: for a layer the model does not have.
            InvalidArgument: when a module cannot be run on its own.
        """
        block, dtype = self.block(layer), self.hf_model.dtype
        norm = self.architecture.att_norm
        gain = None if norm is None else gain_of(block.get_submodule(norm), self.d_model, dtype, centred=False)
        W_O = self._maps.of(block.get_submodule(self.architecture.module(Tap.Z)), self._z_width, dtype)
        return W_O if self._multiplier == 1 else W_O * self._multiplier, gain

    def part_gain(self, site: Site) -> Float[Tensor, " d_model"] | None:
        """The factor per channel between a part's module and the stream; None where the output is added as it is.

        It is the gain of the norm that follows, or Granite's residual multiplier.

        Raises:
            UnknownSite: for a layer the model does not have.
        """
        block = self.block(site.layer)
        if site.part is Part.RES or not self._module_is_apart:
            return None
        if self.architecture.att_norm is None:
            return torch.full((self.d_model,), self._multiplier, dtype=self.hf_model.dtype, device=self.device)
        norm = block.get_submodule(self.architecture.module(Tap.of(site.part)))
        return gain_of(norm, self.d_model, self.hf_model.dtype, centred=False)

    def value_bias(self, layer: int) -> Float[Tensor, " d_in"]:
        """The constant that the biases of the values, and of the norm before them, add to `z` whatever is attended to.

        Raises:
            UnknownSite: for a layer the model does not have.
            InvalidArgument: when a sink takes part of the attention, so that the addition differs from token to token.
        """
        config, family, block = self.hf_model.config.get_text_config(), self.architecture, self.block(layer)
        if hasattr(block.get_submodule(family.attention), "sinks"):
            raise InvalidArgument(
                f"attention of a {family.family} model gives part of its weight to a sink, so that the bias of the "
                "values adds something else to z at each token. Use a dictionary trained on z as it is."
            )
        norm = nn.Identity() if family.first_norm is None else block.get_submodule(family.first_norm)
        bias = constant_of(norm, block.get_submodule(named(family.v_proj, "v")), self.d_model, self.hf_model.dtype)
        heads = int(config.num_attention_heads)
        # one row per head; in fused projections keep the value rows: the last ones, or the last of each group of heads
        rows = bias.view(-1, self._z_width // heads)
        if family.fused:
            shared = (len(rows) - heads) // 2
            rows = rows[-shared:] if family.fused == "columns" else rows.view(shared, -1, rows.shape[1])[:, -1]
        return rows.repeat_interleave(heads // len(rows), dim=0).reshape(-1)  # several query heads share a value head

    def settled(self, point: Point) -> Point:
        """The same tensor, with `View.OWN` where in this model it is the tensor at the tap itself.

        Raises:
            UnknownSite: for a layer the model does not have.
            InvalidArgument: when this model has no such tensor.
        """
        own, family = point._replace(view=View.OWN), self.architecture
        if point.view is View.PROCESSED and point.tap is not Tap.MLP_IN:
            moved = bool(self.value_bias(point.layer).any()) if point.tap is Tap.Z else family.centred
            return point if moved else own
        if point.view is View.NORM and family.norms_attention:
            return own
        if point.view is View.RMS and not family.centred and family.mlp_norm is not None:
            return own
        if point.view is View.MODULE:
            return point if self._module_is_apart and point.tap in (Tap.ATT, Tap.MLP) else own
        if point.view is View.OWN:
            return point
        raise InvalidArgument(
            f"a {family.family} model has nothing at {point}: the dictionary was trained on another kind of model. "
            "Load the model it was trained on, or pass site=... to say what it reads."
        )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a text, from the model's generation settings, else from the tokenizer."""
        own = cast("GenerationConfig | None", self.hf_model.generation_config)
        ends = None if own is None else cast("int | list[int] | None", own.eos_token_id)
        ends = cast("int | None", self.tokenizer.eos_token_id) if ends is None else ends
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    @property
    def pad_id(self) -> int:
        """The id of the padding token: the tokenizer's, else its end-of-text token, else 0."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        return 0

    @property
    def _z_width(self) -> int:
        config = self.hf_model.config.get_text_config()
        per_head = cast("int | None", getattr(config, "head_dim", None))
        return config.num_attention_heads * (per_head or config.hidden_size // config.num_attention_heads)

    @property
    def _multiplier(self) -> float:
        """The factor by which the output of each part is multiplied before it is added to the stream."""
        name = self.architecture.multiplier
        return float(getattr(self.hf_model.config.get_text_config(), name)) if name else 1.0

    @property
    def _module_is_apart(self) -> bool:
        """Whether the output of a part's module differs from what is added to the stream."""
        return self.architecture.att_norm is not None or self._multiplier != 1

    def watch(self, point: Point, act: Watcher) -> RemovableHandle:
        """Call `act` on the tensor at a point in every pass and put its answer in place, until the handle is removed.

        Raises:
            UnknownSite: for a layer the model does not have.
            InvalidArgument: when this model has no such tensor.
        """
        point, family = self.settled(point), self.architecture
        module = self.block(point.layer).get_submodule(family.module(point.tap, point.view))
        if point.view is View.PROCESSED:
            act = hooks.with_shift(self.value_bias(point.layer) if point.tap is Tap.Z else None, act)
        if point.tap in (Tap.ATT, Tap.MLP) and point.view is not View.MODULE and self._multiplier != 1:
            act = hooks.with_factor(self._multiplier, act)
        if point.tap is Tap.MLP and family.in_place:
            act = hooks.with_copies(act)
        return hooks.watch_input(module, act) if family.is_input(point.tap) else hooks.watch_output(module, act)

    def _logits(self, tokens: Tokens) -> Float[Tensor, "batch pos vocab"]:
        check_context(self.hf_model, tokens.input_ids.shape[1])
        out = self.hf_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
        return cast("Tensor", out.logits)


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prepend_bos: bool | None = None,
    sites: SiteMap | None = None,
) -> LanguageModel:
    """Load a model and its tokenizer from a folder, from the hub, or from the demo pack that comes with saeflow.

    Args:
        name_or_path: a folder in Hugging Face format, a GGUF file or a folder with one, a name on the Hugging Face
            hub, "demo", or one of `packaged_models.MODELS` that has been fetched: "smollm2-135m", "gemma-3-270m".
        device: where to put the weights.
        dtype: what to compute in, whatever the file holds.
        prepend_bos: whether texts begin with the begin-of-text token; None for what the dictionaries' files state
            (`as_trained`), else the tokenizer's default.
        sites: the module paths of a family that is not mapped, in the form of `site_map`; checked on a text.

    Raises:
        InvalidArgument: for a site map that does not fit the model, or an unknown device.
        UnknownRelease: when there is no folder or repository of that name, the demo model is missing, or a packaged
            model has not been fetched.
        Unreachable: when the hub cannot be reached or refuses the files.
        UnknownArchitecture: when the sites of this kind of model are not mapped.
        BadFile: when a folder or a GGUF file exists but does not load as a model.
        UnsupportedFormat: when the installed transformers would drop settings or weights of the file.
        MissingExtra: for a GGUF file, without the packages that the extra gguf installs.
    """
    device = known_device(device)
    named = fetched_model(name_or_path)
    folder = named or name_or_path
    if Path(folder).exists():
        folder = Path(folder).absolute()  # the name is written to files, and must hold from other folders too
    hf_model, tokenizer = fetch(folder, dtype, mapped=sites is not None)
    placed = cast("PreTrainedModel", nn.Module.to(hf_model, device))
    name = name_or_path if named else folder
    loaded_by = LoadArguments(str(name), str(device), dtype, prepend_bos)
    return LanguageModel(placed, tokenizer, loaded_by, prepend_bos=prepend_bos, sites=sites)


@lru_cache(maxsize=1)
def _load_in_worker(
    name: str, device: str, dtype: torch.dtype, prepend_bos: bool | None, sites: Architecture | None
) -> LanguageModel:
    """The same model in a worker process, loaded once for all its tasks."""
    return load_model(name, device=device_of_worker(device), dtype=dtype, prepend_bos=prepend_bos, sites=sites)
