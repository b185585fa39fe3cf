"""Put the pack together: half-precision model, dictionaries, atlas."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.ids import Part, Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.build import build_atlas
from saeflow.sources.activations import JumpReLU
from saeflow.sources.dictionary import Dictionary, Tap
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model

from .corpus import BOS

NAME = "saeflow-demo"


def write_model(final: Path, tokenizer: Path, out: Path) -> None:
    """The trained model and its tokenizer as a Hugging Face folder in float16."""
    out.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM.from_pretrained(final).to(torch.float16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tokenizer)), bos_token=BOS, eos_token=BOS, pad_token=BOS,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.save_pretrained(out)


def open_model(folder: Path) -> LanguageModel:
    return load_model(str(folder))


def write_dictionaries(trained: Path, out: Path) -> tuple[DictionarySet, Atlas]:
    """The SAEs as a saeflow folder in float16, and their atlas, from what was written."""
    found: dict[Site, Dictionary] = {}
    for path in sorted(trained.glob("*.safetensors")):
        layer, part = path.stem.split(".")
        state = load_file(path)
        site = Site(int(layer), Part(part))
        found[site] = Dictionary(
            site, tap=Tap(part), W_enc=state["W_enc"], b_enc=state["b_enc"], W_dec=state["W_dec"],
            b_dec=state["b_dec"], activation=JumpReLU(state["threshold"]),
        )  # fmt: skip
    save_release(out / "saes", found, name="demo", model=NAME)
    dictionaries = load_dictionaries(out / "saes")
    return dictionaries, build_atlas(dictionaries, out=out / "atlas", k=5, release="demo", model=NAME)
