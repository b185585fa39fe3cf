"""Where each family of Hugging Face models keeps the tensors that dictionaries read: the one place for module paths.

An SAE reads one of four tensors of a layer: the residual stream after the block, what attention or the MLP adds to it,
or the head outputs `z` before the output projection (section 3.3 of arXiv 2502.03032 names the first three R_L, A_L
and M_L; Gemma Scope's attention SAEs are trained on `z`). A transcoder reads what the MLP reads and predicts what the
MLP writes.

    site          Gemma 2 / 3                  Llama and its kin          GPT-2              GPT-NeoX
    res           model.layers.L               same                       transformer.h.L    gpt_neox.layers.L
    att           post_attention_layernorm     self_attn [0]              attn [0]           attention [0]
    mlp           post_feedforward_layernorm   mlp                        mlp                mlp
    z (input of)  self_attn.o_proj             self_attn.o_proj           attn.c_proj        attention.dense
    mlp_in        pre_feedforward_layernorm    post_attention_layernorm   ln_2               post_attention_layernorm

Each of these is the output of the named module, except `z`, which is its module's input; `[0]` means that the module
returns a tuple. `mlp_in` is the output of the norm before the MLP, gain included, and `mid` is that norm's input. OLMo
2 and 3 have no such norm; there both are the MLP's input.

With these taps, pre + att + mlp = post holds for each block up to rounding. Gemma 2 and 3, OLMo 2 and 3 and GLM 4 norm
the output of attention and MLP before adding it (sandwich norm), so there the site is the norm's output. Granite
multiplies the output by a number from its configuration, and the site is the product. GPT-NeoX and most Falcon models
run both parts on the block's input, so the MLP does not see what attention wrote.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from saeflow.errors import InvalidArgument, UnknownArchitecture
from saeflow.ids import Part, Site


class Tap(enum.StrEnum):
    """Which tensor of a layer a dictionary reads; `Z` is the concatenated head outputs before `o_proj`.

    Only transcoders read `MLP_IN` and `MID`. `MLP_IN` is the MLP module's input. `MID` is the same tensor before the
    norm that precedes the MLP: the residual stream after attention, or the block's input where both parts run in
    parallel.
    """

    RES = "res"
    ATT = "att"
    MLP = "mlp"
    Z = "z"
    MLP_IN = "mlp_in"
    MID = "mid"

    @staticmethod
    def of(part: Part) -> Tap:
        """The tap whose tensor is the site itself: what the part adds to the residual stream, or the stream."""
        return Tap(part.value)

    @property
    def part(self) -> Part:
        """The part whose site this tap belongs to: attention for `Z`, the MLP for `MLP_IN` and `MID`."""
        if self.is_read_only:
            return Part.MLP
        return Part.ATT if self is Tap.Z else Part(self.value)

    @property
    def is_read_only(self) -> bool:
        """Whether only transcoders read this tap; they write elsewhere, so nothing is reconstructed here."""
        return self in (Tap.MLP_IN, Tap.MID)


class View(enum.StrEnum):
    """How a dictionary's file names the tensor it reads, where the meaning of the name depends on the model.

    `LanguageModel.settled` resolves it: in many models the last four are the tensor at the tap itself.
    """

    OWN = ""
    """The tensor at the tap, as it stands in the model."""
    MODULE = "module"
    """The output of the part's module; a norm may follow before it is added to the residual stream."""
    NORM = "norm"
    """The output of the norm after the part, in models that have one."""
    RMS = "rms"
    """The input of an RMSNorm before the MLP, which the dictionary itself rescales; undefined for a LayerNorm."""
    PROCESSED = "processed"
    """As TransformerLens holds it by default: centred if the model has LayerNorms, and z without the value bias."""


SAE_TAPS: Final = (Tap.RES, Tap.ATT, Tap.MLP, Tap.Z)
"""The taps at which a dictionary reconstructs what it reads, and at which its features can be edited."""


class Point(NamedTuple):
    """One tensor of one layer. A site stands for `Point(layer, Tap.of(part))`; `z` is not a site."""

    layer: int
    tap: Tap
    view: View = View.OWN

    @staticmethod
    def at(where: PointLike) -> Point:
        """The point that a site or a pair `(layer, tap)` stands for; a point is returned as it is."""
        if isinstance(where, Point):
            return where
        if isinstance(where, Site):
            return Point(where.layer, Tap.of(where.part))
        return Point(where[0], Tap(where[1]))

    def __eq__(self, other: object) -> bool:
        """A plain `(layer, tap)` equals the point with `View.OWN`."""
        return isinstance(other, tuple) and tuple(self) == (*other, View.OWN)[:3]

    def __ne__(self, other: object) -> bool:
        """The opposite of `==`, which a tuple does not derive from it."""
        return not self == other

    def __hash__(self) -> int:
        """The hash of the plain tuple `(layer, tap)`, which may be equal to this point."""
        return hash((self.layer, self.tap))

    def __str__(self) -> str:
        """`24/z`, `24/mlp (module)`."""
        return f"{self.layer}/{self.tap.value}{f' ({self.view.value})' if self.view else ''}"


PointLike: TypeAlias = Site | tuple[int, Tap] | Point
"""A site, a `Point`, or `(layer, tap)`, such as `(layer, Tap.Z)` for the head outputs, which are not a site."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module paths of one model family.

    `trunk` is a path in the model; `blocks`, `embed` and `final_norm` are paths in the trunk; all other paths are
    relative to a block.

    Attributes:
        family: its common name.
        trunk: the model without its head; it takes token ids and a cache.
        blocks: the list of layers.
        embed: the token embedding.
        final_norm: the norm between the last block and the head; None where a user's site map does not name it.
        att: the module whose output is added to the residual stream for attention.
        mlp: the module whose output is added to the residual stream for the MLP.
        first_norm: the norm that feeds attention; None where attention reads the stream itself.
        mlp_norm: the norm that feeds the MLP; None where the MLP reads the stream itself.
        o_proj: the projection whose input is `z`; None where a user's site map does not name it.
        att_norm: the norm between `o_proj` and the stream, in sandwich-norm models.
        centred: whether the final norm subtracts the mean (LayerNorm) or not (RMSNorm).
        v_proj: the projection that computes the values; None where a user's site map does not name it.
        fused: how `v_proj` also holds queries and keys: "" it does not; "columns" all queries, then all keys, then
            all values; "heads" side by side for each head, or for each group of heads that share a key and a value.
        parallel: whether the MLP reads the block's input instead of the stream after attention.
        multiplier: the configuration entry by which each part's output is multiplied; "" for none.
        in_place: whether the block adds attention's output to the MLP's in place, overwriting the tensor a hook read.
    """

    family: str
    trunk: str = "model"
    blocks: str = "layers"
    embed: str = "embed_tokens"
    final_norm: str | None = "norm"
    att: str = "self_attn"
    mlp: str = "mlp"
    first_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    o_proj: str | None = "self_attn.o_proj"
    att_norm: str | None = None
    centred: bool = False
    v_proj: str | None = "self_attn.v_proj"
    fused: str = ""
    parallel: bool = False
    multiplier: str = ""
    in_place: bool = False

    @property
    def attention(self) -> str:
        """The path of the attention module, without a norm that may follow it."""
        return self.att if self.o_proj is None else self.o_proj.rpartition(".")[0]

    @property
    def norms_attention(self) -> bool:
        """Whether `post_attention_layernorm` norms the output of attention; in other families it precedes the MLP."""
        return self.att_norm == "post_attention_layernorm"

    @property
    def mlp_module(self) -> str:
        """The path of the MLP module, without a norm that may follow it."""
        return self.mlp if self.att_norm is None else "mlp"

    def module(self, tap: Tap, view: View = View.OWN) -> str:
        """The path within a block of the module whose output, or input (see `is_input`), is the tensor at `tap`.

        Raises:
            InvalidArgument: for z, when the site map does not say where it is.
        """
        if view is View.MODULE and tap in (Tap.ATT, Tap.MLP):
            return self.attention if tap is Tap.ATT else self.mlp_module
        if tap.is_read_only:
            return self.mlp_norm or self.mlp_module
        if tap is Tap.Z:
            return named(self.o_proj, "z")
        return {Tap.RES: "", Tap.ATT: self.att, Tap.MLP: self.mlp}[tap]

    def is_input(self, tap: Tap) -> bool:
        """Whether the tensor at `tap` is its module's input rather than its output."""
        return tap in (Tap.Z, Tap.MID) or (tap is Tap.MLP_IN and self.mlp_norm is None)


def named(path: str | None, key: str) -> str:
    """Return `path`, one of an `Architecture`. Raises InvalidArgument if a user's site map left it out."""
    if path is None:
        raise InvalidArgument(f"the map of this model's sites has no {key!r}. Name that module in sites={{...}} too.")
    return path


_LLAMA: Final = Architecture("Llama")
_GEMMA_2: Final = Architecture(
    "Gemma 2",
    att="post_attention_layernorm",
    mlp="post_feedforward_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    att_norm="post_attention_layernorm",
)
_OLMO_2: Final = replace(_GEMMA_2, family="OLMo 2", first_norm=None, mlp_norm=None)
_GPT_2: Final = Architecture(
    "GPT-2",
    trunk="transformer",
    blocks="h",
    embed="wte",
    final_norm="ln_f",
    att="attn",
    first_norm="ln_1",
    mlp_norm="ln_2",
    o_proj="attn.c_proj",
    centred=True,
    v_proj="attn.c_attn",
    fused="columns",
)

ARCHITECTURES: Final[dict[str, Architecture]] = {
    "llama": _LLAMA,
    "llama4_text": replace(_LLAMA, family="Llama 4", mlp="feed_forward"),
    "mistral": replace(_LLAMA, family="Mistral"),
    "ministral3": replace(_LLAMA, family="Ministral 3"),
    "mistral3": replace(_LLAMA, family="Mistral 3 (with vision)", trunk="model.language_model"),
    "qwen2": replace(_LLAMA, family="Qwen 2"),
    "qwen2_moe": replace(_LLAMA, family="Qwen 2 MoE"),
    "qwen3": replace(_LLAMA, family="Qwen 3"),
    "qwen3_moe": replace(_LLAMA, family="Qwen 3 MoE"),
    "smollm3": replace(_LLAMA, family="SmolLM3"),
    "gpt_oss": replace(_LLAMA, family="GPT-OSS"),
    "phi3": replace(_LLAMA, family="Phi 3", v_proj="self_attn.qkv_proj", fused="columns"),
    "granite": replace(_LLAMA, family="Granite", multiplier="residual_multiplier"),
    "glm4": replace(
        _LLAMA,
        family="GLM 4",
        att="post_self_attn_layernorm",
        mlp="post_mlp_layernorm",
        att_norm="post_self_attn_layernorm",
    ),
    "gemma": replace(_LLAMA, family="Gemma"),
    "gemma2": _GEMMA_2,
    "gemma3_text": replace(_GEMMA_2, family="Gemma 3"),
    "gemma3": replace(_GEMMA_2, family="Gemma 3 (with vision)", trunk="model.language_model"),
    "olmo2": _OLMO_2,
    "olmo3": replace(_OLMO_2, family="OLMo 3"),
    "gpt2": _GPT_2,
    "gpt_neo": replace(
        _GPT_2, family="GPT-Neo", o_proj="attn.attention.out_proj", v_proj="attn.attention.v_proj", fused=""
    ),
    "gpt_neox": Architecture(
        "GPT-NeoX",
        trunk="gpt_neox",
        embed="embed_in",
        final_norm="final_layer_norm",
        att="attention",
        o_proj="attention.dense",
        centred=True,
        v_proj="attention.query_key_value",
        fused="heads",
        parallel=True,
    ),
    "falcon": replace(
        _GPT_2,
        family="Falcon",
        embed="word_embeddings",
        att="self_attention",
        first_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        o_proj="self_attention.dense",
        v_proj="self_attention.query_key_value",
        fused="heads",
    ),
}
"""`model.config.model_type` -> the family's paths; `architecture_of` adjusts them to the configuration."""


def architecture_of(config: object) -> Architecture:
    """The module paths of a model, from its configuration.

    Raises:
        UnknownArchitecture: when its `model_type` is not mapped; the message lists those that are.
    """
    model_type = str(getattr(config, "model_type", ""))
    found = ARCHITECTURES.get(model_type)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnknownArchitecture(
            f"model_type {model_type!r} has no map of its sites. Known: {known}. For another, pass "
            "sites={'res': ..., 'att': ..., 'mlp': ...} to load_model or LanguageModel: see docs/howto/in-memory.md."
        )
    setting = partial(getattr, config)
    if found.parallel and not setting("use_parallel_residual", True):
        return replace(found, parallel=False)
    if model_type == "falcon" and (setting("parallel_attn", True) or setting("new_decoder_architecture", False)):
        # 40B and later have a norm for each part, 7B one for both; only the serial form has GPT-2's two norms
        norms = setting("num_ln_in_parallel_attn", None) or 2
        apart = setting("new_decoder_architecture", False) and norms == 2
        first, second = ("ln_attn", "ln_mlp") if apart else ("input_layernorm", "input_layernorm")
        return replace(found, first_norm=first, mlp_norm=second, parallel=True, in_place=True)
    return found
