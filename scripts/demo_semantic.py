"""Does semantic optimal transport name better predecessors than the cosine of decoder rows? On the demo pack.

    python scripts/demo_semantic.py OUT         writes OUT/semantic (an atlas), OUT/deactivation, and prints the tables

Agreement is that of docs/agreement.md: how often two methods name the same predecessor. Deactivation removes the active
predecessors that either names, on texts that no method saw, and asks whether the feature falls silent.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from demo_build.markdown import table
from saeflow.comparison.semantic import METHOD, semantic_rows, semantic_table
from saeflow.experiments.deactivation_tables import summarize_deactivation
from saeflow.experiments.inputs import Inputs, deactivation
from saeflow.experiments.sampling import expand, held_out, open_dataset
from saeflow.experiments.settings import DeactivationSize, InputNames
from saeflow.ids import Part
from saeflow.matching.agreement import agreement
from saeflow.matching.atlas import Atlas, both_ways, flow_pairs, open_atlas, save_manifest, table_entry, table_file
from saeflow.matching.build import weights_of
from saeflow.matching.correlation import correlate
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model

TOKENS, TEXTS = 50_000, 400


def main() -> None:
    out = Path(sys.argv[1])
    dictionaries, model = load_dictionaries("demo"), load_model("demo")
    texts = held_out([open_dataset(name) for name in expand(["demo"])], TEXTS)
    # 1. an atlas of the nearest distributions
    began = time.perf_counter()
    rows = semantic_rows(model, dictionaries, texts, max_tokens=TOKENS)
    pairs = flow_pairs(list(dictionaries))
    folder = out / "semantic"
    ways = [way for pair in pairs for way in both_ways(pair)]
    for source, target in ways:
        made = semantic_table((source, rows[source]), (target, rows[target]), 5)
        made.save(folder / table_file(source, target))
    print(f"semantic tables of {len(ways)} pairs in {time.perf_counter() - began:.0f} s")
    files = {way: table_entry(folder, *way) for way in ways}
    weights = weights_of(dictionaries, dictionaries)
    save_manifest(Atlas(folder, "demo", "demo", 5, "scripts/demo_semantic.py", files, METHOD, weights=weights))
    # 2. agreement, beside that of Pearson correlations on the same texts
    pearson = correlate(model, dictionaries, texts, out=out / "pearson", k=5, max_tokens=TOKENS)
    found = agreement({"cosine": open_atlas("demo"), METHOD: open_atlas(folder), "pearson": pearson})
    shown = [["methods", *(part.value for part in (Part.RES, Part.MLP, Part.ATT))]]
    for a, b in ((METHOD, "cosine"), (METHOD, "pearson"), ("pearson", "cosine")):
        shares = [found.share(a, b, part) for part in (Part.RES, Part.MLP, Part.ATT)]
        shown.append([f"{a} and {b}", *(f"{same:.2f} / {among:.2f}" for same, among, _ in shares)])
    print(table(shown))
    # 3. deactivation: "pearson" is the strategy whose tables may be given
    for name, atlas in ((METHOD, folder), ("pearson", out / "pearson")):
        inputs = Inputs.open(InputNames("demo", pearson=str(atlas)), first=1)
        size = DeactivationSize(strategies=("top-1", "pearson"), texts=20, tokens=3, features=15, r=(0.0, 1.0), loss=0)
        tables = summarize_deactivation(deactivation(inputs, size, out=out / f"deactivation-{name}"))
        for shown_table in ("by_strategy", "paired"):
            print(name, tables[shown_table].title)
            print(tables[shown_table].frame().to_string())


if __name__ == "__main__":
    main()
