"""Draw the pictures of docs/concepts: a diagram of the sites, and measurements on the demo pack.

    python scripts/docs_figures.py                                    sites, matching, spans
    python scripts/docs_figures.py ORIGINS DEACTIVATION SWEEP         also copy the figures of three results folders

The folders are written by `saeflow origins demo`, `saeflow deactivate demo` and `saeflow sweep demo --samples 32`. All
pictures are SVG, follow the page's light or dark scheme, and the same data give the same bytes.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import saeflow as sf

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
FEATURE: Final = "4/res/72"
SPAN_LAYER: Final = 3
STYLE: Final = """\
text { font: 13px Helvetica, Arial, "Liberation Sans", sans-serif; fill: #22201c; }
.paper { fill: #fffefb; } .muted { fill: #645f55; } .small { font-size: 11px; } .bold { font-weight: 700; }
.line { stroke: #645f55; fill: none; stroke-width: 1.5; } .rule { stroke: #ddd7c9; fill: none; }
.res { --c: #1a539f; } .mlp { --c: #df5712; } .att { --c: #058774; }
.box { fill: var(--c); fill-opacity: .12; stroke: var(--c); stroke-width: 1.5; } .dot { fill: var(--c); }
.ring { fill: none; stroke: var(--c); stroke-width: 2; } .cell { fill: #2a66a9; }
.band { fill: #645f55; fill-opacity: .16; } .on { fill: #fffefb; }
@media (prefers-color-scheme: dark) {
  text { fill: #ece8dd; } .paper { fill: #1b1a17; } .muted { fill: #a8a294; } .line { stroke: #a8a294; }
  .rule { stroke: #3a372f; } .res { --c: #5382cd; } .mlp { --c: #e65e45; } .att { --c: #3db594; }
  .cell { fill: #7db1ea; } .band { fill: #a8a294; } .on { fill: #151412; }
}"""


@dataclass
class Drawing:
    """An SVG under construction, in pixels from the top left."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list[str])

    def text(self, x: float, y: float, said: str, of: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{of}" text-anchor="{anchor}">{escape(said)}</text>')

    def box(self, x: float, y: float, w: float, h: float, of: str, opacity: float | None = None) -> None:
        seen = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" class="{of}"{seen}/>')

    def dot(self, x: float, y: float, r: float, of: str, opacity: float = 1) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" class="{of}" opacity="{opacity:g}"/>')

    def path(self, d: str, of: str = "line", *, arrow: bool = False) -> None:
        end = ' marker-end="url(#tip)"' if arrow else ""
        self.parts.append(f'<path d="{d}" class="{of}"{end}/>')

    def save(self, name: str) -> None:
        w, h = f"{self.width:g}", f"{self.height:g}"
        tip = (
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0L8 4L0 8Z" class="muted"/></marker>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.title)}" '
            f'width="{w}" height="{h}" viewBox="0 0 {w} {h}"><style>\n{STYLE}\n</style><defs>{tip}</defs>'
            '<rect width="100%" height="100%" class="paper"/>'
        )
        (IMAGES / f"{name}.svg").write_text(head + "".join(self.parts) + "</svg>\n", encoding="utf-8")


def site(drawing: Drawing, x: float, y: float, name: str, said: str) -> None:
    """Draw a dictionary as a box labelled with its site."""
    part = name.split("/")[1]
    drawing.box(x, y, 92, 40, f"{part} box")
    drawing.text(x + 46, y + 17, name, "bold", "middle")
    drawing.text(x + 46, y + 32, said, "muted small", "middle")


def sites() -> None:
    """Draw the positions of dictionaries in two layers of a model."""
    d = Drawing(900, 290, "The sites of two layers: residual stream, attention output and MLP output")
    d.text(14, 34, "h after", "muted small")
    d.text(14, 48, "layer L − 2", "muted small")
    d.path("M80 42H884", arrow=True)
    for start, layer in ((80, "L − 1"), (480, "L")):
        key = layer.replace(" ", "")
        d.path(f"M{start + 20} 84H{start + 388}V284H{start + 20}Z", "rule")
        d.text(start + 204, 274, f"layer {layer}", "muted small", "middle")
        for x, part, said in ((start + 40, "att", "what attention adds"), (start + 170, "mlp", "what the MLP adds")):
            d.path(f"M{x + 14} 42V120", arrow=True)
            d.box(x, 122, 92, 30, "rule")
            d.text(x + 46, 142, "attention" if part == "att" else "MLP", "", "middle")
            d.path(f"M{x + 46} 152V186", arrow=True)
            site(d, x, 188, f"{key}/{part}", "a dictionary")
            d.path(f"M{x + 92} 137H{x + 106}V46", arrow=True)
            d.text(x + 46, 246, said, "muted small", "middle")
            d.dot(x + 106, 42, 4, "muted")
        d.path(f"M{start + 330} 42V186", arrow=True)
        site(d, start + 280, 188, f"{key}/res", "a dictionary")
        d.text(start + 326, 246, "the stream after it", "muted small", "middle")
    d.save("concept-sites")


def matching() -> None:
    """Plot the cosines of one feature with all features of three predecessor sites, the best match and chance level."""
    dictionaries, atlas = sf.load_dictionaries("demo"), sf.open_atlas("demo")
    seed = sf.FeatureId.parse(FEATURE)
    row = dictionaries[seed.site].directions()[seed.index]
    d = Drawing(900, 270, f"Cosine of {FEATURE} with every feature of its three predecessor sites")
    left, scale, low = 124.0, 385.0, -0.4

    def at(value: float) -> float:
        return left + (value - low) * scale

    for tick in (-0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        d.path(f"M{at(tick):.1f} 24V232", "rule")
        d.text(at(tick), 250, f"{tick:.1f}", "muted small", "middle")
    d.text(at(1.0) - 4, 266, f"cosine with {FEATURE}", "muted small", "end")
    for lane, name in enumerate(("3/res", "4/mlp", "4/att")):
        y, target = 60 + 66 * lane, sf.Site.parse(name)
        scores = (dictionaries[target].directions() @ row).tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        null = atlas.null(seed.site, target)
        cut = null.quantile(0.99) if null else 0.0
        d.box(at(0), y - 22, at(cut) - at(0), 44, "band")
        for index, score in enumerate(scores):
            d.dot(at(score), y + ((index * 7919) % 31 - 15) * 0.9, 2, f"{target.part.value} dot", 0.35)
        d.dot(at(scores[best]), y + ((best * 7919) % 31 - 15) * 0.9, 6, f"{target.part.value} ring")
        d.text(14, y - 2, name, "bold")
        d.text(14, y + 14, f"{len(scores)} features", "muted small")
        d.text(at(1.0) + 14, y - 2, f"{name}/{best}: {scores[best]:.2f}", "bold small")
        d.text(at(1.0) + 14, y + 14, f"chance: 99 % below {cut:.2f}", "muted small")
    d.save("concept-matching")


def spans() -> None:
    """Tabulate the first and last layer of the flow graphs of all features of one layer."""
    atlas = sf.open_atlas("demo")
    where = sf.Site.parse(f"{SPAN_LAYER}/res")
    size = len(atlas[where, sf.Site.parse(f"{SPAN_LAYER - 1}/res")].index)
    found = Counter(sf.trace(sf.FeatureId(where, index), atlas).span for index in range(size))
    d = Drawing(460, 290, f"First and last layer of the flow graphs of all features of {where}")
    for first in range(SPAN_LAYER + 1):
        d.text(92, 78 + 46 * first, f"from layer {first}", "muted small", "end")
        for last in range(SPAN_LAYER, 6):
            share = found[first, last] / size
            x, y = 104 + 92 * (last - SPAN_LAYER), 54 + 46 * first
            d.box(x, y, 88, 42, "cell", 0.06 + 0.94 * share)
            d.text(x + 44, y + 26, f"{100 * share:.1f} %", "on" if share > 0.4 else "", "middle")
    for last in range(SPAN_LAYER, 6):
        d.text(148 + 92 * (last - SPAN_LAYER), 44, f"to layer {last}", "muted small", "middle")
    d.text(104, 20, f"Spans of {size} graphs, one from each feature of {where}", "bold")
    d.text(104, 262, "A graph ends where no match reaches t(R) = 0.5,", "muted small")
    d.text(104, 278, "or at the first or last layer of the model.", "muted small")
    d.save("concept-spans")


def copied(folders: list[Path]) -> None:
    """Copy the figures that the pages show from the results folders."""
    for folder, name, image in zip(
        folders,
        ("shares_by_layer-cosine", "by_strategy_layer", "steering_best-activate"),
        ("concept-origins", "concept-deactivation", "concept-steering"),
        strict=True,
    ):
        shutil.copyfile(folder / "figures" / f"{name}.svg", IMAGES / f"{image}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of origins, deactivate and sweep, all three or none")
    asked = parser.parse_args()
    sites()
    matching()
    spans()
    if asked.folders:
        copied(asked.folders)


if __name__ == "__main__":
    main()
