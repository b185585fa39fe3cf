"""Residual stream SAEs in .pt files without a configuration, recognised by their file names.

    Qwen Scope   SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer{L}.sae.pt
        W_enc [n_features d_in]   b_enc   W_dec [d_in n_features]   b_dec            TopK, k follows L0_
    Goodfire     Llama-3.1-8B-Instruct-SAE-l{L}.pth, Llama-3.3-70B-Instruct-SAE-l{L}.pt
        encoder_linear.{weight,bias}   decoder_linear.{weight,bias}                  ReLU
    DeepSeek R1  DeepSeek-R1-Distill-Llama-8B-SAE-l{L}.pt
        encoder.{weight,bias}   decoder.{weight,bias}                                ReLU

The decoder bias is not subtracted from the input. sae-lens 6.54.12 converts these files in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from saeflow.ids import Part, Site
from saeflow.sources.activations import Activation, ReLU, TopK
from saeflow.sources.dictionary import Dictionary, Tap
from saeflow.sources.formats.file_weights import FileWeights, Stored, refused
from saeflow.sources.formats.tensors import TorchFile

QWEN_SCOPE: Final = re.compile(r"layer(\d+)\.sae\.pt")
SAE_L: Final = re.compile(r".+-SAE-l(\d+)\.pth?")
_SPARSITY: Final = re.compile(r"SAE-Res-.+-W\d+K-L0_(\d+)")


def read_qwen_scope(file: Path, site: Site | None = None) -> Dictionary:
    """Open the Qwen Scope SAE of one layer; reads names and shapes only. `site` overrides the file name.

    Raises:
        BadFile: when the tensors do not follow the format.
    """
    names = {name: Stored(name, transposed=name == "W_dec") for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    found = _SPARSITY.search(str(file.absolute()))
    unknown = (
        f"{file}: no folder above it is named as its repository, SAE-Res-MODEL-W32K-L0_50, which alone says how many "
        "features are kept. Directions are known, activations are not. Name the folder so."
    )
    activation = refused(unknown) if found is None else partial(TopK, int(found[1]))
    return _residual(file, site, TorchFile(file), names, QWEN_SCOPE, activation)


def read_sae_l(file: Path, site: Site | None = None) -> Dictionary:
    """Open the SAE in a file named ...-SAE-l{L}.pt or .pth; reads names and shapes only. `site` overrides the name.

    Raises:
        BadFile: when the tensors do not follow the format.
    """
    tensors = TorchFile(file)
    suffix = "_linear" if "encoder_linear.weight" in tensors.shapes else ""
    names = {
        "W_enc": Stored(f"encoder{suffix}.weight"),
        "b_enc": Stored(f"encoder{suffix}.bias"),
        "W_dec": Stored(f"decoder{suffix}.weight", transposed=True),
        "b_dec": Stored(f"decoder{suffix}.bias"),
    }
    return _residual(file, site, tensors, names, SAE_L, ReLU)


def _residual(
    file: Path,
    site: Site | None,
    tensors: TorchFile,
    layout: dict[str, Stored],
    names: re.Pattern[str],
    activation: Callable[[], Activation],
) -> Dictionary:
    found = names.fullmatch(file.name)
    place = site or Site(int(found[1]) if found else 0, Part.RES)
    return Dictionary.reading(
        place, tap=Tap.of(place.part), weights=FileWeights(tensors, layout), activation=activation
    )
