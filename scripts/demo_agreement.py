"""Measure how often the matching methods name the same predecessor in the demo pack.

    python scripts/demo_agreement.py          writes docs/agreement.md and docs/images/demo-agreement.svg

Covers all methods that match by weights, and Pearson correlation over at most 100,000 tokens of the pack's held-out
texts.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from demo_build.markdown import table
from saeflow.experiments.sampling import expand, held_out, open_dataset
from saeflow.ids import Part
from saeflow.matching.agreement import Agreement, AgreementRow, agreement
from saeflow.matching.build import compare_methods
from saeflow.matching.correlation import correlate
from saeflow.matching.methods import METHODS
from saeflow.paper import agreement_by_layer, save
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model

DOCS = Path(__file__).parent.parent / "docs"
DRAWN = ("permutation", "virtual", "decoder-product-folded", "pearson")
TOKENS = 100_000
INTRODUCTION = f"""\
Written by `python scripts/demo_agreement.py`, on the demo pack. For every residual feature of a layer: does a method
name the same predecessor as cosine does? Each cell gives the share of features whose best match is the same, then the
share whose best match under the method is among the five best by cosine. Features that a one-to-one method leaves
without a partner, or that never fire, are left out. Folding divides by thresholds; at 0/res, 1/mlp and 2/mlp one
threshold is not above 0, so folded methods have no entries there. Pearson correlations are those of appendix C.4, over
at most {TOKENS:,} tokens of the pack's held-out texts, excluding special tokens.
"""


def compared() -> Agreement:
    dictionaries = load_dictionaries("demo")
    tables = dict(compare_methods(dictionaries, tuple(METHODS), k=5, partial=True))
    passages = held_out([open_dataset(name) for name in expand(["demo"])], 1000)
    with tempfile.TemporaryDirectory() as folder:
        pearson = correlate(load_model("demo"), dictionaries, passages, out=folder, k=5, max_tokens=TOKENS)
        return agreement(tables | {"pearson": pearson})


def by_layer(rows: list[AgreementRow], part: Part) -> str:
    """A table with a row per method and a column per layer: share with the same best match / share in the top five."""
    layers = sorted({row.layer for row in rows if row.part is part})
    shown = [["method", *(f"layer {layer}" for layer in layers)]]
    for method in dict.fromkeys(row.method_a for row in rows):
        cells = {row.layer: row for row in rows if row.part is part and row.method_a == method}
        told = [f"{cells[n].same:.2f} / {cells[n].in_top_k:.2f}" if n in cells and cells[n].n else "" for n in layers]
        shown.append([method, *told])
    return table(shown)


def main() -> None:
    found = compared()
    rows = [row for row in found.rows if row.method_b == "cosine"]
    drawn = [asdict(row) | {"part": row.part.value} for row in rows if row.method_a in DRAWN]
    save(agreement_by_layer(drawn), DOCS / "images" / "demo-agreement.svg")
    parts = [
        "# Do matching methods agree?\n",
        INTRODUCTION,
        "![Agreement with cosine by layer and part](images/demo-agreement.svg)\n",
    ]
    titles = {
        Part.RES: "Residual stream of the layer before",
        Part.MLP: "MLP of the same layer",
        Part.ATT: "Attention of the same layer",
    }
    for part, title in titles.items():
        parts += [f"## {title}\n", by_layer(rows, part)]
    page = "\n".join(parts)
    (DOCS / "agreement.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
