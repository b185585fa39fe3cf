"""Compare what the weights predict with the effects measured on twenty texts of the demo pack.

    python scripts/demo_prompt_graphs.py          writes a section of docs/prompt-graphs.md

Uses four texts from each of the five domains, with one random non-special token each. Every active feature and every
error is ablated on its own (`saeflow.trace_text`); then the graphs are pruned by effect, and their fidelity is compared
with random graphs of the same size. Intervals are over texts, as in all experiments (`saeflow.experiments.statistics`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from rich.progress import track

import saeflow as sf
from demo_build.markdown import table
from saeflow.experiments.sampling import Sample, draw, expand, open_dataset
from saeflow.experiments.statistics import GAP, RATE, Tally, means
from saeflow.prompt_graph import PromptGraph, Pruning
from saeflow.prompt_graph.fidelity import measure_fidelity
from saeflow.prompt_graph.trace import trace_text

PAGE: Final = Path(__file__).parent.parent / "docs" / "prompt-graphs.md"
TEXTS, LENGTH, RANDOM = 4, 128, 20
CUTS: Final = (0.02, 0.05, 0.1, 0.2)
TEXT: Final = ["dataset", "text"]


def children(graph: PromptGraph, sample: Sample) -> list[dict[str, object]]:
    """One row per residual feature with at least two active parents: how cosines and effects rank the parents."""
    edges = graph.edges[(graph.edges["link"] == "stream") & ~graph.edges["parent"].str.contains("error")]
    rows: list[dict[str, object]] = []
    for child, into in edges.groupby("child"):
        if len(into) < 2:
            continue
        effect, cosine = into["effect"].abs().to_numpy(), into["cosine"].to_numpy()
        named, total = into["rank"].notna().to_numpy(), effect.sum()
        best = int(effect.argmax())
        rows.append(
            {
                "dataset": sample.dataset,
                "text": sample.text,
                "layer": int(str(child).split("/")[0]),
                "same": float(cosine.argmax() == best),
                "chance": 1 / len(into),
                "named_first": float(named[best]),
                "any_named": float(named.any()),
                "carried": effect[named].sum() / total if total else np.nan,
                "carried_share": named.mean(),
                "best_effect": into["effect"].to_numpy()[best],
                "effect_named": into["effect"][named].mean() if named.any() else np.nan,
                "control_named": into["control"][named].mean() if named.any() else np.nan,
                "rank_correlation": pd.Series(effect).corr(pd.Series(cosine), method="spearman"),
            }
        )
    return rows


def fidelities(
    graph: PromptGraph, sample: Sample, model: sf.LanguageModel, saes: sf.DictionarySet
) -> list[dict[str, object]]:
    """One row per cut: how much the pruned graph carries, compared with random graphs."""
    rows: list[dict[str, object]] = []
    for cut in CUTS:
        pruned = graph.prune(Pruning(effect=cut))
        found = measure_fidelity(pruned, model, saes, random_graphs=RANDOM)
        counts = pruned.nodes["kind"].value_counts()
        rows.append(
            {
                "dataset": sample.dataset,
                "text": sample.text,
                "cut": cut,
                "features": counts.get("feature", 0),
                "errors": counts.get("error", 0),
                "of": int((graph.nodes["kind"] == "feature").sum()),
                "all": found.to_lose,
                "completeness": found.whole - found.without,
                "random completeness": found.whole - np.mean([without for _, without in found.random]),
                "faithfulness": found.kept - found.nothing,
                "random faithfulness": np.mean([kept for kept, _ in found.random]) - found.nothing,
            }
        )
    return rows


def measured() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure all texts; returns the rows of `children` and of `fidelities`."""
    saes, atlas = sf.load_dictionaries("demo"), sf.open_atlas("demo")
    model = sf.load_model("demo").as_trained(saes)
    special = model.tokenizer.all_special_ids
    encode = lambda text: model.tokenize([text], max_length=LENGTH).input_ids[0].tolist()  # noqa: E731
    samples = [
        sample
        for name in expand(["demo"])
        for sample in draw(open_dataset(name), encode, n_texts=TEXTS, n_tokens=1, special=special)
    ]
    of_children: list[dict[str, object]] = []
    of_graphs: list[dict[str, object]] = []
    for sample in track(samples, description="texts"):
        graph = trace_text(
            sample.content,
            saes,
            token=sample.positions[0],
            model=model,
            atlas=atlas,
            pruning=None,
            kept=0.0,
            fidelity=False,
            max_length=LENGTH,
        )
        of_children += children(graph, sample)
        of_graphs += fidelities(graph, sample, model, saes)
    return pd.DataFrame(of_children), pd.DataFrame(of_graphs)


def said(row: pd.Series, name: str) -> str:
    """Format a mean with its interval."""
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def of_all(graphs: pd.DataFrame, logit: pd.Series) -> str:
    """A share of the target logit over all texts, with its interval: the summed parts over the summed possible loss."""
    both = np.stack([logit, graphs["all"]], -1)
    found = Tally(both, pd.factorize(graphs["dataset"])[0]).told(n=len(graphs), sizes=np.ones(len(graphs)))
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def tables(of_children: pd.DataFrame, of_graphs: pd.DataFrame) -> str:
    """The tables of the page, as Markdown."""
    # 1. cosines compared with effects
    lines = {
        "the edge with the highest cosine is the one with the largest effect": ("same", RATE),
        "the same, were one drawn at random": ("chance", RATE),
        "some active parent is named by matching": ("any_named", RATE),
        "the edge with the largest effect is named by matching": ("named_first", RATE),
        "share of all effects that named edges carry": ("carried", RATE),
        "share of all edges that are named": ("carried_share", RATE),
        "mean effect of named edges": ("effect_named", None),
        "mean effect of their controls": ("control_named", None),
        "rank correlation of cosine and effect": ("rank_correlation", GAP),
    }
    every = of_children.assign(all="all")
    found = means(every, ["all"], dict(lines.values())).iloc[0]
    first = [["of a residual feature with two active parents or more", "mean (95 % interval)"]]
    first += [[title, said(found, name)] for title, (name, _) in lines.items()]
    # 2. by layer
    by_layer = means(of_children, ["layer"], {"same": RATE, "chance": RATE, "carried": RATE})
    second = [["layer", "highest cosine has the largest effect", "at random", "effect that named edges carry"]]
    second += [
        [str(layer), said(row, "same"), f"{row['chance']:.2f}", said(row, "carried")]
        for layer, row in by_layer.iterrows()
    ]
    # 3. how much graphs carry
    shares = ("completeness", "random completeness", "faithfulness", "random faithfulness")
    third = [["effect from", "features", "errors", *shares]]
    fourth = [["effect from", "completeness above random", "faithfulness above random"]]
    there = of_graphs[of_graphs["all"].notna()]
    for cut, some in there.groupby("cut"):
        size = some[["features", "of", "errors"]].mean()
        counts = [f"{size['features']:.0f} of {size['of']:.0f}", f"{size['errors']:.0f}"]
        third.append([f"{cut:g}", *counts, *(of_all(some, some[name]) for name in shares)])
        above = [of_all(some, some[name] - some[f"random {name}"]) for name in ("completeness", "faithfulness")]
        fourth.append([f"{cut:g}", *above])
    n, n_there = (len(lines[TEXT].drop_duplicates()) for lines in (of_graphs, there))
    lost = f"In {n_there} of the {n} texts the target has something to lose. In the others the biases of the "
    lost += "dictionaries alone\ngive it as large a logit: the token is a common one.\n"
    return "\n".join(
        [
            f"{n} texts, one token each, {len(of_children):,} residual features.\n",
            *map(table, (first, second)),
            lost,
            *map(table, (third, fourth)),
        ]
    )


HEADING: Final = "## In the demo pack: does the best cosine carry the most?"
INTRODUCTION: Final = """\
Written by `python scripts/demo_prompt_graphs.py`. Four texts of each of the five domains, one random token each; every
active feature and every error is removed alone. Errors count in graphs, and not in the first two tables. Completeness
and faithfulness are those of all texts together: the sum of what goes, or is left, over that of what there is to lose.
"""


def main() -> None:
    made = tables(*measured())
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(f"{HEADING}\n")
    after = rest.partition("\n## ")[2]
    PAGE.write_text(f"{before}{HEADING}\n\n{INTRODUCTION}\n{made}\n## {after}", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
