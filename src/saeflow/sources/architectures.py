"""Where each family of Hugging Face models keeps the tensors a dictionary reads: the only module paths.

An SAE reads one of four tensors of a layer: the residual stream after the block, what
attention or the MLP adds to it, or the head outputs `z` before the output projection (section 3.3
of arXiv 2502.03032 names the first three R_L, A_L and M_L; Gemma Scope trains attention on `z`). A
transcoder reads what its MLP reads and writes what the MLP writes.

    site          Gemma 2 / 3                  Llama and its kin          GPT-2              GPT-NeoX
    res           model.layers.L               same                       transformer.h.L    gpt_neox.layers.L
    att           post_attention_layernorm     self_attn [0]              attn [0]           attention [0]
    mlp           post_feedforward_layernorm   mlp                        mlp                mlp
    z (input of)  self_attn.o_proj             self_attn.o_proj           attn.c_proj        attention.dense
    mlp_in        pre_feedforward_layernorm    post_attention_layernorm   ln_2               post_attention_layernorm

Every site is the output of its module, and `z` the input of one. `mlp_in` is what the norm before the MLP
returns, its gain included, and `mid` what that norm is given; OLMo 2 and 3 have no such norm, and there both are what
the MLP is given. `[0]`: the module returns a tuple.
With these taps, pre + att + mlp = post holds for each block up to rounding: Gemma 2 and 3, OLMo 2 and 3 and GLM 4 norm
what a part wrote before adding it (sandwich norm), so there the site is the norm's output, not the part's. Granite
multiplies it by a number of its configuration, and the site is the product.
GPT-NeoX and most Falcons run both parts on the block's input, so the MLP does not see what attention wrote.
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

    `MLP_IN` and `MID` are read by transcoders alone: what the MLP module is called with, and the same before
    the norm that precedes the MLP (the residual stream after attention; where both parts run in parallel, the
    block's input).
    """

    RES = "res"
    ATT = "att"
    MLP = "mlp"
    Z = "z"
    MLP_IN = "mlp_in"
    MID = "mid"

    @staticmethod
    def of(part: Part) -> Tap:
        """The tap whose tensor is the site's own: what the part adds to the stream, or the stream."""
        return Tap(part.value)

    @property
    def part(self) -> Part:
        """The part of the site this tap serves: `Z` is read for attention, what the MLP reads for the MLP."""
        if self.is_read_only:
            return Part.MLP
        return Part.ATT if self is Tap.Z else Part(self.value)

    @property
    def is_read_only(self) -> bool:
        """Whether only transcoders read it, which write elsewhere: nothing is reconstructed there."""
        return self in (Tap.MLP_IN, Tap.MID)


class View(enum.StrEnum):
    """How a dictionary's file names its tensor, where only the model says what that means.

    `LanguageModel.settled` says it: in many models the last four are the tensor at the tap itself.
    """

    OWN = ""
    """The tensor at the tap, as it stands in the model."""
    MODULE = "module"
    """What the module of the part returns; a norm may follow before it is added to the stream."""
    NORM = "norm"
    """What the norm after the part returns, in models that have one."""
    RMS = "rms"
    """What an RMSNorm before the MLP divides; of a LayerNorm it would be another vector."""
    PROCESSED = "processed"
    """As TransformerLens holds it by default: centred where the model has LayerNorms, z less the value bias."""


SAE_TAPS: Final = (Tap.RES, Tap.ATT, Tap.MLP, Tap.Z)
"""The taps where a dictionary writes what it reads, and where its features can be edited."""


class Point(NamedTuple):
    """One tensor of one layer. A site names `Point(layer, Tap.of(part))`; `z` has no site of its own."""

    layer: int
    tap: Tap
    view: View = View.OWN

    @staticmethod
    def at(where: PointLike) -> Point:
        """The point a site names, or the point itself."""
        if isinstance(where, Point):
            return where
        if isinstance(where, Site):
            return Point(where.layer, Tap.of(where.part))
        return Point(where[0], Tap(where[1]))

    def __eq__(self, other: object) -> bool:
        """A plain `(layer, tap)` is the tensor as it stands in the model."""
        return isinstance(other, tuple) and tuple(self) == (*other, View.OWN)[:3]

    def __hash__(self) -> int:
        """As the plain tuple has it."""
        return hash((self.layer, self.tap))

    def __str__(self) -> str:
        """`24/z`, `24/mlp (module)`."""
        return f"{self.layer}/{self.tap.value}{f' ({self.view.value})' if self.view else ''}"


PointLike: TypeAlias = Site | tuple[int, Tap] | Point
"""A site, `(layer, Tap.Z)` for the head outputs before the output projection, which are no site, or a `Point`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The module paths of one family.

    `trunk` is a path in the model, `blocks`, `embed` and `final_norm` are paths in the trunk, and the
    rest are paths in a block.

    Attributes:
        family: what people call it.
        trunk: the model without its head; it takes token ids and a cache.
        blocks: the list of layers.
        embed: the token embedding.
        final_norm: the norm between the last block and the head; None where a map of the user's does not say it.
        att: the module whose output attention adds to the stream.
        mlp: the module whose output the MLP adds to the stream.
        first_norm: the norm that feeds attention; None where attention reads the stream itself.
        mlp_norm: the norm that feeds the MLP; None where the MLP reads the stream itself.
        o_proj: the projection whose input is `z`; None where a map of the user's does not say it.
        att_norm: the norm between `o_proj` and the stream, in sandwich-norm models.
        centred: whether the final norm subtracts the mean (LayerNorm) or not (RMSNorm).
        v_proj: the projection that makes the values; None where a map of the user's does not say it.
        fused: how `v_proj` holds queries, keys and values together: "" not at all, "columns" one after the
            other, "heads" those of a head, or of the heads that share a key and a value, side by side.
        parallel: whether the MLP reads the block's input instead of the stream after attention.
        multiplier: the entry of the configuration that what each part returns is multiplied by; "" for none.
        in_place: whether the block adds attention's output to that of the MLP in place, which spoils what was read.
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
        """The attention module, which a norm may follow."""
        return self.att if self.o_proj is None else self.o_proj.rpartition(".")[0]

    @property
    def norms_attention(self) -> bool:
        """Whether `post_attention_layernorm` norms what attention wrote; elsewhere it is the norm before the MLP."""
        return self.att_norm == "post_attention_layernorm"

    @property
    def mlp_module(self) -> str:
        """The MLP, which a norm may follow."""
        return self.mlp if self.att_norm is None else "mlp"

    def module(self, tap: Tap, view: View = View.OWN) -> str:
        """The path within a block of the module that holds `tap`: its output, or its input (`is_input`).

        Raises:
            InvalidArgument: for z in a map that does not say where it is.
        """
        if view is View.MODULE and tap in (Tap.ATT, Tap.MLP):
            return self.attention if tap is Tap.ATT else self.mlp_module
        if tap.is_read_only:
            return self.mlp_norm or self.mlp_module
        if tap is Tap.Z:
            return named(self.o_proj, "z")
        return {Tap.RES: "", Tap.ATT: self.att, Tap.MLP: self.mlp}[tap]

    def is_input(self, tap: Tap) -> bool:
        """Whether the tensor is what its module is given, not what it returns."""
        return tap in (Tap.Z, Tap.MID) or (tap is Tap.MLP_IN and self.mlp_norm is None)


def named(path: str | None, key: str) -> str:
    """A path of an `Architecture`. Raises InvalidArgument where a map of the user's has none."""
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
"""`model.config.model_type` -> the family's paths; `architecture_of` puts in what a configuration decides."""


def architecture_of(config: object) -> Architecture:
    """The module paths of a model, by its configuration.

    Raises:
        UnknownArchitecture: when no family of that name is mapped; the message lists those that are.
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
        # 40B and later norm apart for each part, 7B once for both; only their serial form has the norms of GPT-2
        norms = setting("num_ln_in_parallel_attn", None) or 2
        apart = setting("new_decoder_architecture", False) and norms == 2
        first, second = ("ln_attn", "ln_mlp") if apart else ("input_layernorm", "input_layernorm")
        return replace(found, first_norm=first, mlp_norm=second, parallel=True, in_place=True)
    return found
