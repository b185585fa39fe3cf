"""CARD.md of the pack: what it is, what it was made from, all measurements, and its limitations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import markdown, texts
from .saes import Recipe

INTRODUCTION = """# The saeflow demo pack

A language model of six layers ({parameters:,} parameters) and a sparse autoencoder at every layer and every
part of it (residual stream, MLP output, attention output), trained for saeflow, so that everything saeflow does
can be tried in seconds on a laptop, with effects that are real.

**Written by `scripts/build_demo.py` from the stored measurement; do not edit by hand.**

## What it is not good for

- It is no model to use: it writes plausible sentences in five narrow domains and knows nothing.
- A result on it says something about the method and the code, and nothing about large models.
- The words of a feature are the tokens it fires on most, not an explanation that anybody checked.
- Its novels and tales are a century old and more, and carry the views of their time.

## Data

| domain | what | licence |
|---|---|---|
| stories | TinyStories (Eldan and Li 2023); children's books of Project Gutenberg | CDLA-Sharing-1.0; public domain |
| novels | War and Peace, Pride and Prejudice, Moby-Dick, Sherlock Holmes (Project Gutenberg) | public domain |
| textbooks | OpenStax: physics, economics, statistics, anthropology, Python | CC BY 4.0 |
| maths | GSM8K, training part (openai/grade-school-math) | MIT |
| python | the standard library of Python 3.11 | PSF-2.0 |

One document in fifty was held out; every number below is on held-out text. None of these texts is in the pack.
The passages in `texts/`, {passages} of each domain but python, were written by the model itself; those that repeat
49 characters of the training text were thrown away ({dropped}).
The first {first} of a domain were compared with the training text of that domain, the others with that of all five.

## Training

Model: Llama-style, d_model 192, 6 heads, MLP 512, context 256, byte-level BPE of 4,096 pieces, tied embeddings;
{training_tokens:,} tokens, AdamW at 3e-3 with a cosine schedule, batches of 8,192 tokens, float32.

SAEs: JumpReLU with a quadratic penalty around a target L0 (Gemma Scope 2), trained by `saeflow.training` with the
losses of sae-lens from a seed of their own each, on streamed activations of the training windows, in an order shared by
the sites of a part:

{trained}

Batches of 2,048, 3e-3 with decay over the last 30 % (refining: 50 %). Refining goes on from the trained weights
with a lower target L0. MLP and attention dictionaries are shipped without the features that fire on fewer than 1 in
100,000 of 1.5 million training tokens.

The weights are float16; everything was measured on what is shipped.
"""


def section(title: str, name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A titled table; the columns are taken from the first row."""
    columns = list(next(iter(rows.values())))
    cells = [
        [key, *(f"{row[c]:.3f}" if isinstance(row[c], float) else f"{row[c]:,}" for c in columns)]
        for key, row in rows.items()
    ]
    return f"\n## {title}\n\n" + markdown.table([[name, *columns], *cells])


def _tokens(recipe: Recipe) -> str:
    refined = f", then {recipe.refine_tokens:,} to refine" if recipe.refine_tokens else ""
    return f"{recipe.tokens:,} tokens{refined}"


def write_card(measured: Mapping[str, Any], recipes: Mapping[str, Recipe], out: Path) -> None:
    dropped = ", ".join(f"{n} of {domain}" for domain, n in measured["texts thrown away as copies"].items())
    page = INTRODUCTION.format(
        parameters=measured["model"]["parameters"],
        training_tokens=measured["model"]["training_tokens"],
        dropped=dropped,
        passages=texts.PASSAGES,
        first=texts.FIRST,
        trained="\n".join(f"- {part}: {_tokens(recipe)}" for part, recipe in recipes.items()),
    )
    page += section("The model on held-out text", "domain", measured["model"]["domains"])
    page += section("The SAEs on held-out text", "site", measured["saes"])
    page += (
        "\n`fve`: fraction of variance explained. `l0`: mean number of active features. `dead`: share that never\n"
        "fired on the text measured. `loss recovered`: (L_zero - L_spliced) / (L_zero - L_clean), with the\n"
        "reconstruction or zeros put in place of the activations; `loss added`: L_spliced - L_clean in nats a token.\n"
    )
    page += section("Flow: best cosine of each feature", "match", measured["flow"])
    out.write_text(page)
