"""`saeflow transition` on the demo pack: a folder, its figures, a run that is taken up, refusals."""

import json

import pytest

from saeflow.experiments.results import Results

SMALL = (
    "--texts",
    "demo:stories,demo:maths",
    "--part",
    "att",
    "--layers",
    "1",
    "--tokens",
    200,
    "--fit-tokens",
    1500,
    "--k",
    "1",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(monkeypatch, saeflow_here, work):
    """Run the command; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *arguments: saeflow_here("transition", *arguments)


def test_it_writes_a_folder_with_tables_and_figures_wide_and_narrow_and_asks_for_its_page(
    run, work, monkeypatch
) -> None:
    drawn = []
    monkeypatch.setattr("saeflow.paper.results.write_page", drawn.append)  # pages have their own tests
    code, out, _ = run("demo", *SMALL, "--n-loss-texts", 1)
    assert code == 0
    for words in ("cosine top-1", "permutation", "least squares", "Skipping a layer", "transition-demo"):
        assert words in out
    folder = work / "transition-demo"
    results = Results.open(folder)
    assert results.record.finished
    assert results.record.request.arguments["pairs"] == ["1/att > 2/att"]
    for table in ("transition_permutations", "transition_top_k", "transition_loss"):
        for ending in (".svg", ".png", "-narrow.svg", "-narrow.png"):
            assert (folder / "figures" / f"{table}{ending}").stat().st_size > 1000
    assert [path.name for path in drawn] == ["transition-demo"]
    [row] = [row for row in results.tables()["transition_permutations"].dicts() if row["method"] == "reconstruction"]
    assert 0.3 < row["ev"] < 1


def test_a_finished_run_is_not_done_again_and_prints_json(run, work, monkeypatch) -> None:
    monkeypatch.setattr("saeflow.paper.results.write_page", lambda folder: folder)  # drawn once, above
    monkeypatch.setattr("saeflow.cli.experiments.save_plates", lambda tables, folder: [])
    assert (
        run("demo", *SMALL, "--n-loss-texts", 1)[0] == 0
    )  # there already, unless this test runs without the one above
    before = {path: path.stat().st_mtime_ns for path in (work / "transition-demo").glob("*s/*.*z*")}
    code, out, _ = run("demo", *SMALL, "--n-loss-texts", 1, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["folder"] == "transition-demo"
    assert "transition_fits" in told["tables"]
    assert before
    assert {path: path.stat().st_mtime_ns for path in before if "rows" in str(path)} == {
        path: time for path, time in before.items() if "rows" in str(path)
    }


def test_other_arguments_are_refused_where_a_run_is(run) -> None:
    assert run("demo", *SMALL, "--n-loss-texts", 1)[0] == 0
    code, _, err = run("demo", *SMALL, "--n-loss-texts", 2)
    assert code == 2
    assert "loss_texts is 1 there and 2 here" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--layers", "5"), "has not both res dictionaries of layers [5]"),
        (("demo", "--part", "mpl"), '"mpl" for --part. Choose from'),
        (("demo", "--pairs", "0/res-1/res"), "Write a pair as 0/res>1/res"),
        (("demo", "--pairs", "2/res>1/res"), "does not come before"),
        (("demo", "--k", "0,1"), "for --k: 0 is out of range"),
        (("demo", "--texts", "demo:nothing"), "no dataset 'demo:nothing'"),
        (("nowhere",), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(run, arguments, words) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
