"""`saeflow origins` and `saeflow deactivate` on the demo pack: folders, tables, resume, refusals."""

import json

import pytest

from saeflow.experiments.results import Results
from saeflow.matching.atlas import open_atlas

from .paper.sample_results import drawn as draw_page

PAGE = draw_page
SMALL = ("--texts", "demo:stories,demo:maths", "--n-texts", 2, "--tokens-per-text", 2, "--layers", "2-3")
METHODS = ("--methods", "cosine,cosine-top-5,permutation")
STRATEGIES = ("--strategies", "top-1,random,exhaustive", "--r", "0,1,2", "--n-loss-targets", 1)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def drawn():
    """The folders a page was asked for."""
    return []


@pytest.fixture
def run(monkeypatch, saeflow_here, work, drawn):
    """Run the command; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("SAEFLOW_CACHE", str(work / "cache"))
    monkeypatch.setattr("saeflow.paper.results.write_page", drawn.append)  # figures have their own tests
    return saeflow_here


@pytest.fixture
def finished(run, work):
    """A finished run of origins, of an earlier test where this worker had it."""
    if not (work / "origins-demo" / "summary.json").exists():
        run("origins", "demo", *SMALL, *METHODS)


def test_origins_writes_a_folder_with_tables_and_asks_for_its_page(run, work, drawn) -> None:
    code, out, _ = run("origins", "demo", *SMALL, *METHODS)
    assert code == 0
    for words in ("Origin of active features by dataset", "RES & MLP", "permutation", "origins-demo"):
        assert words in out
    folder = work / "origins-demo"
    results = Results.open(folder)
    assert results.record.finished
    assert results.record.request.datasets == ("demo:stories", "demo:maths")
    assert results.record.request.arguments["layers"] == [2, 3]
    assert set(results.record.request.atlases) == {"cosine", "cosine top-5", "permutation"}
    assert {row["layer"] for row in results.rows()} == {2, 3}
    assert [path.name for path in drawn] == ["origins-demo"]
    assert (folder / "tables" / "shares_by_layer.csv").exists()


def test_deactivate_writes_a_folder_with_tables_and_a_page(run, work, monkeypatch) -> None:
    monkeypatch.setattr("saeflow.paper.results.write_page", PAGE)
    code, out, _ = run("deactivate", "demo", *SMALL, *STRATEGIES, "--n-targets", 3, "--out", "gone")
    assert code == 0
    for words in ("Deactivation by strategy", "active control", "exhaustive"):
        assert words in out
    results = Results.open(work / "gone")
    assert {row["strategy"] for row in results.rows()} == {"top-1", "random of top-5", "exhaustive"}
    assert {row["r"] for row in results.rows()} == {0, 1, 2}
    assert "<html" in (work / "gone" / "index.html").read_text()


def test_a_finished_run_is_not_done_again_and_prints_json(run, work, finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work / "origins-demo" / "rows").iterdir()}
    code, out, _ = run("origins", "demo", *SMALL, *METHODS, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["folder"] == "origins-demo"
    assert told["tables"]["shares_by_layer"]["columns"][:2] == ["method", "dataset"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--seed", 1), "seed is 0 there and 1 here"),
        (("--tokens-per-text", 3), "tokens is 2 there and 3 here"),
        (("--methods", "cosine"), "atlas permutation is"),
    ],
)
def test_other_arguments_are_refused_naming_what_differs(run, changes, words, finished) -> None:
    code, _, err = run("origins", "demo", *SMALL, *(() if "--methods" in changes else METHODS), *changes)
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("origins", "demo", "--texts", "demo:nothing"), "no dataset 'demo:nothing'"),
        (("origins", "demo", "--layers", "9"), "--layers names 9"),
        (("origins", "demo", "--layers", "two"), "such as 6,12,18 or 6-9"),
        (("origins", "demo", "--methods", "cosine,luck"), "of cosine, cosine-top-5, permutation, pearson"),
        (("origins", "nowhere"), "nowhere"),
        (("deactivate", "demo", "--strategies", "greedy"), "are searches"),
        (("deactivate", "demo", "--strategies", "top-1", "--r", "x"), "for --r: 'x' is no number"),
        (
            ("deactivate", "demo", "--strategies", "top-1", "--n-loss-targets", "some"),
            "for --n-loss-targets: 'some' is no whole number",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(run, arguments, words) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err


def test_pearson_tables_are_made_on_held_out_texts_once(run, work) -> None:
    arguments = ("origins", "demo", "--texts", "demo:maths", "--n-texts", 2, "--tokens-per-text", 2, "--layers", 3)
    pearson = ("--methods", "cosine,pearson", "--pearson-texts", "demo:maths")
    code, out, _ = run(*arguments, *pearson, "--out", "p", "--json")
    assert code == 0
    [made] = (work / "cache" / "matches").glob("pearson-*")
    assert open_atlas(made).method == "pearson"
    [row] = [row for row in json.loads(out)["tables"]["agreement"]["rows"] if row[2:4] == ["RES", "all"]]
    assert 0.2 < row[4] < 1  # two methods that look at different things agree on much and not on all
    code, again, _ = run(*arguments, *pearson[:2], "--pearson", made, "--out", "q", "--json")
    assert code == 0
    assert json.loads(again)["tables"]["agreement"] == json.loads(out)["tables"]["agreement"]
