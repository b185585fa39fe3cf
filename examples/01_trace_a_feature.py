"""Trace the flow graph of a feature of the demo pack, print it, and write it as an HTML page."""

from pathlib import Path

import saeflow as sf
from saeflow.labels import open_words

atlas = sf.open_atlas("demo")
words = open_words(atlas.folder)
seed = sf.FeatureId.parse("4/res/1")

graph = sf.trace(seed, atlas, thresholds=sf.Thresholds(res=0.5, module=0.25))
print(sf.render(graph, to="text", words=words))

for node in graph.circuits:
    print(f"{node.feature}: {', '.join(node.joins)} joins here, {node.evolution}")
for end in graph.ends:
    print(end.sentence)

page = Path("graph.html")
page.write_text(sf.render(graph, to="html", words=words), encoding="utf-8")
print(f"open {page.resolve()} in a browser")
