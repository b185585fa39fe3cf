"""Assemble the pack: half-precision model, dictionaries, atlas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from saeflow.ids import Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate
from saeflow.sources.dictionary import Dictionary, TrainingInfo
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet, load_dictionaries
from saeflow.sources.model import LanguageModel, load_model

from .corpus import BOS
from .model import CONTEXT

NAME = "demo"


def write_model(final: Path, tokenizer: Path, out: Path) -> None:
    """Write the trained model and its tokenizer as a Hugging Face folder in float16."""
    out.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM.from_pretrained(final).to(torch.float16).save_pretrained(out)
    backend = Tokenizer.from_file(str(tokenizer))
    # every window that the model and the SAEs were trained on starts with BOS
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=BOS, pad_token=BOS, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(out)
    # transformers 5 writes a class name that version 4 does not know, but reads both names
    told = out / "tokenizer_config.json"
    settings = json.loads(told.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    told.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in out.iterdir():
        path.chmod(0o644)


def open_model(folder: Path) -> LanguageModel:
    return load_model(str(folder))


def write_dictionaries(found: Mapping[Site, Dictionary], out: Path) -> tuple[DictionarySet, Atlas]:
    """Write the SAEs as a saeflow folder in float16, and build the atlas from the written files."""
    told = TrainingInfo(prepend_bos=True, context_size=CONTEXT)
    made = {site: dictionary.with_training(told) for site, dictionary in found.items()}
    save_release(out / "saes", made, name="demo", model=NAME)
    dictionaries = load_dictionaries(out / "saes")
    atlas = build_atlas(dictionaries, out=out / "atlas", k=5, release="demo", model=NAME)
    return dictionaries, calibrate(dictionaries, atlas)
