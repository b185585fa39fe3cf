"""What people see of an object in a terminal and in a notebook, as a DataFrame, a figure or a file."""

from __future__ import annotations

import re

import pytest

import saeflow as sf
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import Results, RunRequest, SummaryTable
from saeflow.report.exports import FORMATS, export


@pytest.fixture(scope="module")
def things():
    atlas = sf.open_atlas("demo")
    return {
        "atlas": atlas,
        "table": atlas["4/res", "3/res"],
        "dictionaries": sf.load_dictionaries("demo"),
        "model": sf.load_model("demo"),
        "graph": sf.trace("4/res/72", atlas),
    }


@pytest.fixture
def results(tmp_path):
    request = RunRequest("deactivation", "demo", "demo", 0, ("demo",), {}, {})
    made = Results.start(tmp_path / "few", request, lambda: [{"dataset": "demo", "text": 0}], {})
    made.run(lambda unit: [{**unit, "z_new": 0.0}])
    table = SummaryTable.of("by_strategy", "What <was> left", "", "", "strategy, n", [("top-1", 3)])
    made.write_tables([table])
    return sf.open_results(made.folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("atlas", r"Atlas\('demo', model 'demo', cosine, 34 tables of 18 sites, k = 5\)"),
        ("table", r"MatchTable\(4/res to 3/res, cosine, 768 features, k = 5\)"),
        ("dictionaries", r"DictionarySet\('demo', model 'demo', att at layers 0-5; mlp .*\)"),
        ("model", r"LanguageModel\('demo', 6 layers, d_model 192, float32 on cpu\)"),
    ],
)
def test_a_repr_is_one_line_that_says_what_it_is_and_a_notebook_shows_it_with_the_rows(things, name, said):
    shown, html = repr(things[name]), things[name]._repr_html_()
    assert re.fullmatch(said, shown)
    assert html.startswith("<p><code>")
    assert ("<table" in html) == hasattr(things[name], "to_pandas")


def test_tables_graphs_matches_and_plans_are_data_frames(things):
    assert things["atlas"].to_pandas().columns.tolist() == ["source", "target", "bytes"]
    assert len(things["atlas"].to_pandas()) == len(things["atlas"])
    assert things["table"].to_pandas()["score"].max() <= 1
    assert things["graph"].to_pandas()["parent"].str.count("/").eq(2).all()
    sites = sf.load_dictionaries("demo")
    sites["4/res"]
    frame = sites.to_pandas().set_index("site")
    assert frame.loc["4/res", "features"] == 768
    assert frame["features"].notna().sum() == 1  # nothing is opened to show it
    plan = sf.plan("demo", starts=["3/res/541"], model=things["model"])
    assert plan.to_pandas()["feature"].tolist() == [str(step.feature) for step in plan.steps]


def test_results_say_how_far_they_are_and_which_tables_there_are(results):
    assert repr(results).startswith("Results(Removing predecessors: demo, 1 of 1 units, in ")
    assert results.to_pandas()["z_new"].tolist() == [0.0]
    assert "<code>by_strategy</code>" in results._repr_html_()
    assert "What &lt;was&gt; left" in results._repr_html_()


def test_render_knows_every_format_of_the_command_line(things):
    graph = things["graph"]
    for name in FORMATS:
        made = sf.render(graph, name)
        assert (made if isinstance(made, bytes) else made.encode()) == export(graph, name)
    assert sf.render(graph, "png").startswith(b"\x89PNG")
    with pytest.raises(InvalidArgument, match=r"to 'grapml'\. Did you mean 'graphml'\?"):
        sf.render(graph, "grapml")


def test_a_table_is_plotted_as_a_figure_of_matplotlib(results):
    from matplotlib.figure import Figure

    with pytest.raises(InvalidArgument, match="there is no table 'by_strat'"):
        sf.plot(results, "by_strat")
    table = SummaryTable.of("by_rescale", "Rescaled", "", "", "strategy, r, n", [])
    results.write_tables([table])
    (figure,) = sf.plot(results, "by_rescale")
    assert isinstance(figure, Figure)
