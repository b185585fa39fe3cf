"""Every format that saeflow reads: a function that writes a small example, and one that reads all of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from formats_more import more_formats
from fuzz import ROOT, Format

sys.path[:0] = [str(ROOT / "tests" / "sources")]

import layouts  # noqa: E402 - the writers used by the tests
import layouts_more  # noqa: E402


def formats(scratch: Path) -> list[Format]:
    """All formats; `scratch` is a folder for intermediate files."""
    a = layouts.arrays()
    wide, skip = layouts_more.transcoder_arrays()
    return [
        Format("saeflow", _own_release, _dictionaries),
        Format("gemma-scope", lambda p: layouts.write_gemma_scope(p, a), _dictionaries),
        Format("gemma-scope packed", lambda p: layouts.write_gemma_scope(p, a, pack=True), _dictionaries),
        Format("gemma-scope-2", lambda p: layouts.write_gemma_scope_2(p, a), _dictionaries),
        Format("llama-scope", lambda p: layouts.write_llama_scope(p, a), _dictionaries),
        Format("sae-lens", lambda p: layouts.write_sae_lens(p, a), _dictionaries),
        Format("old sae-lens", lambda p: layouts_more.write_old_sae_lens(p, a), _dictionaries),
        Format("sparsify", lambda p: layouts_more.write_sparsify(p, a), _dictionaries),
        Format("dictionary_learning", lambda p: layouts_more.write_dictionary_learning(p, a), _dictionaries),
        Format("gemma transcoder", lambda p: layouts_more.write_gemma_transcoder(p, a), _dictionaries),
        Format(
            "gemma 2 transcoder", lambda p: layouts_more.write_gemma_2_transcoder(p, wide, skip=skip), _dictionaries
        ),
        Format("atlas", lambda p: _atlas(p, scratch), _read_atlas),
        Format("graph", _graph, _read_graph),
        Format("plan", _plan, _read_plan),
        Format("theme", _theme, _read_theme),
        Format("words", _words, _read_words),
        Format("results", _results, _read_results),
        *more_formats(scratch),
    ]


def _dictionaries(place: Path) -> None:
    from saeflow.sources.library import load_dictionaries

    found = load_dictionaries(place)
    for site in found.sites:
        one = found[site]
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "activation"):
            getattr(one, name)
        one.W_skip if one.is_transcoder else None  # noqa: B018


def _own_release(place: Path) -> None:
    from saeflow.sources.formats import load, save_release

    a = layouts.arrays()
    layouts.write_gemma_scope(place / "made", a)
    one = load(next((place / "made").rglob("params.npz")))
    save_release(place, {one.site: one}, name="tiny", model="")
    shutil.rmtree(place / "made")


def _atlas(place: Path, scratch: Path) -> None:
    import saeflow as sf
    from saeflow.ids import Site
    from saeflow.sources.activations import ReLU
    from saeflow.sources.architectures import Tap

    made = {}
    for number, (site, tap) in enumerate((("0/res", Tap.RES), ("1/res", Tap.RES), ("1/mlp", Tap.MLP))):
        a = layouts.arrays(number)
        tensors = {name: layouts._tensor(getattr(a, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        made[Site.parse(site)] = sf.Dictionary(Site.parse(site), tap=tap, activation=ReLU(), **tensors)
    built = scratch / "atlas"
    shutil.rmtree(built, ignore_errors=True)
    atlas = sf.build_atlas(made, out=built, k=3, release="tiny")
    sf.calibrate(made, atlas, rows=16, rotations=2)
    shutil.copytree(built, place, dirs_exist_ok=True)


def _read_atlas(place: Path) -> object:
    import saeflow as sf

    atlas = sf.open_atlas(place)
    for pair in atlas:
        atlas[pair]
    seed = sf.FeatureId.parse("1/res/2")
    graphs = [
        sf.trace(seed, atlas, k=2),
        sf.trace(seed, sf.open_atlas(place), thresholds=sf.Thresholds.calibrated(atlas, 0.1)),
    ]
    sf.open_atlas(place).verify()
    return [graph.to_json() for graph in graphs]


def _graph(place: Path) -> None:
    import saeflow as sf

    graph = sf.trace(sf.FeatureId.parse("5/res/194"), sf.open_atlas("demo"), k=2)
    (place / "graph.json").write_text(graph.to_json())


def _read_graph(place: Path) -> None:
    import saeflow as sf
    from saeflow.errors import BadFile
    from saeflow.reading import read_text

    try:
        graph = sf.FlowGraph.from_json(read_text(place / "graph.json"))
    except (OSError, ValueError) as error:
        raise BadFile(str(error)) from None
    for to in ("text", "json", "svg", "html"):
        sf.render(graph, to=to)


def _plan(place: Path) -> None:
    from saeflow.matching.atlas import open_atlas
    from saeflow.steering import PlanRequest, build_plan

    asked = PlanRequest(release="demo", theme="physics").from_graphs_alone()
    build_plan(asked, atlas=open_atlas("demo")).save(place / "plan.json")


def _read_plan(place: Path) -> None:
    from saeflow.steering import load_plan

    list(load_plan(place / "plan.json").edits)


def _theme(place: Path) -> None:
    themes = ROOT / "src" / "saeflow" / "steering" / "themes" / "demo"
    shutil.copy(themes / "physics.toml", place / "theme.toml")


def _read_theme(place: Path) -> None:
    from saeflow.steering import load_theme

    load_theme(str(place / "theme.toml"), "demo")


def _words(place: Path) -> None:
    from saeflow.ids import Site
    from saeflow.labels.words import Context, FeatureWords, write_words

    known = FeatureWords("a label", (" the", "x"), (" up",), (Context(("a", "b"), (0.0, 1.5), "here"),), 0.01)
    write_words(place, Site.parse("1/res"), [known, None, known])


def _read_words(place: Path) -> None:
    from saeflow.ids import Site
    from saeflow.labels.search import search
    from saeflow.labels.words import WordsFolder

    WordsFolder(place).site(Site.parse("1/res"))
    search(place, "label")


def _results(place: Path) -> None:
    from saeflow.experiments.results import Results, RunRequest, SummaryTable

    request = RunRequest("origins", "demo", "demo", 0, ("demo:stories",), {}, {"layers": [1]})
    results = Results.start(place, request, lambda: [{"dataset": "x", "text": 0}], {})
    results.run(lambda unit: [{"n": 1, **unit}])
    results.write_tables([SummaryTable("t", "a title", "fig. 1", "a note", ("a", "b"), ((1, 0.5), (2, None)))])


def _read_results(place: Path) -> None:
    from saeflow.experiments.results import Results

    results = Results.open(place)
    list(results.rows())
    results.tables()
