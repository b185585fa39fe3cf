"""Where each family of Hugging Face models keeps the tensors a dictionary reads: the only module paths.

An SAE reads one of four tensors of a layer: the residual stream after the block, what
attention or the MLP adds to it, or the head outputs `z` before the output projection (section 3.3
of arXiv 2502.03032 names the first three R_L, A_L and M_L; Gemma Scope trains attention on `z`). A
transcoder reads what its MLP reads and writes what the MLP writes.

    site          Gemma 2 / 3                  Llama, Mistral, Qwen 2/3   GPT-2              GPT-NeoX
    res           model.layers.L               same                       transformer.h.L    gpt_neox.layers.L
    att           post_attention_layernorm     self_attn [0]              attn [0]           attention [0]
    mlp           post_feedforward_layernorm   mlp                        mlp                mlp
    z (input of)  self_attn.o_proj             self_attn.o_proj           attn.c_proj        attention.dense
    mlp_in        pre_feedforward_layernorm    post_attention_layernorm   ln_2               post_attention_layernorm

Every site is the output of its module, and `z` the input of one. `mlp_in` is what the norm before the MLP
returns, its gain included, and `mid` what that norm is given. `[0]`: the module returns a tuple.
With these taps, pre + att + mlp = post holds for each block up to rounding: Gemma 2 and 3 norm what a
part wrote before adding it (sandwich norm), so there the site is the norm's output, not the part's.
GPT-NeoX runs both parts on the block's input, so its MLP does not see what attention wrote.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from saeflow.errors import UnknownArchitecture
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
    def is_input(self) -> bool:
        """Whether the tensor is what its module is given, not what it returns."""
        return self in (Tap.Z, Tap.MID)

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
        final_norm: the norm between the last block and the head.
        att: the module whose output attention adds to the stream.
        mlp: the module whose output the MLP adds to the stream.
        first_norm: the norm that feeds attention.
        mlp_norm: the norm that feeds the MLP.
        o_proj: the projection whose input is `z`.
        att_norm: the norm between `o_proj` and the stream, in sandwich-norm models.
        centred: whether the final norm subtracts the mean (LayerNorm) or not (RMSNorm).
        v_proj: the projection that makes the values.
        fused: how `v_proj` holds queries, keys and values together: "" not at all, "columns" one after the
            other, "heads" a head's three side by side.
        parallel: whether the MLP reads the block's input instead of the stream after attention.
    """

    family: str
    trunk: str = "model"
    blocks: str = "layers"
    embed: str = "embed_tokens"
    final_norm: str = "norm"
    att: str = "self_attn"
    mlp: str = "mlp"
    first_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    o_proj: str = "self_attn.o_proj"
    att_norm: str | None = None
    centred: bool = False
    v_proj: str = "self_attn.v_proj"
    fused: str = ""
    parallel: bool = False

    @property
    def attention(self) -> str:
        """The attention module, which a norm may follow."""
        return self.o_proj.rpartition(".")[0]

    def module(self, tap: Tap, view: View = View.OWN) -> str:
        """The path within a block of the module that holds `tap`: its output, or its input (`Tap.is_input`)."""
        if view is View.MODULE and tap in (Tap.ATT, Tap.MLP):
            return self.attention if tap is Tap.ATT else "mlp"
        if tap.is_read_only:
            return self.mlp_norm
        return {Tap.RES: "", Tap.ATT: self.att, Tap.MLP: self.mlp, Tap.Z: self.o_proj}[tap]


_LLAMA = Architecture("Llama")
_GEMMA_2 = Architecture(
    "Gemma 2",
    att="post_attention_layernorm",
    mlp="post_feedforward_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    att_norm="post_attention_layernorm",
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, family="Mistral"),
    "qwen2": replace(_LLAMA, family="Qwen 2"),
    "qwen3": replace(_LLAMA, family="Qwen 3"),
    "gemma2": _GEMMA_2,
    "gemma3_text": replace(_GEMMA_2, family="Gemma 3"),
    "gemma3": replace(_GEMMA_2, family="Gemma 3 (with vision)", trunk="model.language_model"),
    "gpt2": Architecture(
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
}
"""`model.config.model_type` -> the family's paths."""


def architecture_of(model_type: str) -> Architecture:
    """The module paths of a model, by its `config.model_type`.

    Raises:
        UnknownArchitecture: when no family of that name is mapped; the message lists those that are.
    """
    found = ARCHITECTURES.get(model_type)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnknownArchitecture(
            f"model_type {model_type!r} has no map of its sites. Known: {known}. "
            "Add an entry to ARCHITECTURES in saeflow/sources/architectures.py."
        )
    return found
