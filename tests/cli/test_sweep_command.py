"""`saeflow sweep` on the demo pack: a folder with tables and a page, resume, another judge, refusals."""

import json

import pytest

from saeflow.experiments.results import Results
from saeflow.paper.results import write_page
from saeflow.steering.judges import Score
from saeflow.steering.plan import load_plan
from saeflow.steering.sweep.scoring import read_scores

PAGE = write_page
SMALL = ("--themes", "physics", "--activate", "--layers", "2-3", "--strengths", "1,4", "--samples", 4, "--confirm", 4)
ONE = ("--steering-methods", "single,constant")
TABLES = {
    "steering_cells",
    "steering_best",
    "steering_by_layer",
    "steering_by_value",
    "steering_features",
    "steering_sensitivity",
    "steering_paired",
    "steering_samples",
    "steering_by_share",
}


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
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SAEFLOW_CACHE", str(work / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("saeflow.paper.results.write_page", drawn.append)  # figures have their own tests
    return lambda *arguments: saeflow_here("sweep", *arguments)


def test_a_sweep_writes_a_folder_with_tables_and_plans_and_prints_the_best(run, work, drawn) -> None:
    code, out, _ = run("demo", *SMALL)
    assert code == 0
    for words in ("The best setting of each method", "exponential", "random", "offline", "sweep-demo"):
        assert words in out
    folder = work / "sweep-demo"
    grid, confirmed = Results.open(folder), Results.open(folder / "confirmed")
    assert grid.record.finished
    assert confirmed.record.finished
    assert set(grid.tables()) == TABLES
    assert grid.record.request.datasets == ("physics",)
    asked = grid.record.request.arguments
    assert (asked["layers"], asked["activate"], asked["samples"], asked["fold"]) == ([2, 3], [1.0, 4.0], 4, True)
    assert {row["layer"] for row in grid.rows()} == {-1, 2, 3}
    plan = load_plan(folder / "plans" / "physics-activate-exponential-l3-s4.json")
    assert plan.theme == "physics"
    assert set(plan.layers) <= {0, 1, 2, 3}
    assert [path.name for path in drawn] == ["sweep-demo"]


def test_a_finished_sweep_is_not_done_again_and_prints_json(run, work) -> None:
    folder = work / "sweep-demo"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("rows/*")}
    code, out, _ = run("demo", *SMALL, "--json")
    assert code == 0
    told = json.loads(out)
    assert set(told["tables"]) == TABLES
    assert told["tables"]["steering_best"]["columns"][:4] == ["theme", "direction", "method", "layer"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_judge_is_asked_without_generating(run, work, monkeypatch) -> None:
    class Reader:
        name = "reader"

        def __init__(self, model, base_url):
            assert (model, base_url) == ("some-model", None)

        def score(self, theme, direction, texts, *, progress=None):
            return [Score(coherence=4.0, behavior=1.0 + ("force" in text.text)) for text in texts]

    monkeypatch.setattr("saeflow.steering.judges.llm.LLMJudge", Reader)
    monkeypatch.setattr("saeflow.steering.sweep.run.generate", lambda *a, **k: pytest.fail("generated again"))
    code, out, _ = run("demo", *SMALL, "--judge", "llm", "--llm-model", "some-model")
    assert code == 0
    assert "Judge: reader" in out
    results = Results.open(work / "sweep-demo")
    assert read_scores(results).judge == "reader"
    assert read_scores(results, "offline (loss and TF-IDF)").judge != "reader"
    assert set(results.table("steering_best")["coherence"]) == {4.0}


def test_the_page_of_a_sweep_is_drawn(run, work, monkeypatch) -> None:
    monkeypatch.setattr("saeflow.paper.results.write_page", PAGE)
    assert run("demo", *SMALL)[0] == 0
    page = (work / "sweep-demo" / "index.html").read_text()
    assert "physics" in page
    assert (work / "sweep-demo" / "tables" / "steering_best.csv").is_file()


def test_variants_are_recorded_and_a_theme_of_ones_own_is_read_from_its_file(run, work) -> None:
    own = work / "falling.toml"
    examples = "\n".join(f'"A stone of {n} kilograms falls to the ground under gravity.",' for n in range(6))
    own.write_text(
        f'subject = "falling bodies"\nrelease = "demo"\nstarts = ["3/res/541"]\nexamples = [{examples}]\n'
        '[activate]\nprompt = "I think"\nmax_new_tokens = 8\n'
    )
    variants = ("--t-res", 0.6, "--k", 2, "--parts", "res", "--no-fold", "--alpha", -0.25, "--budget-total", 0.2)
    code, out, err = run(
        "demo",
        "--themes",
        own,
        "--layers",
        "3",
        "--strengths",
        "4",
        "--samples",
        4,
        "--confirm",
        4,
        *ONE,
        *variants,
        "--out",
        "own",
        "--json",
    )
    assert code == 0, err
    asked = Results.open(work / "own").record.request.arguments
    assert (asked["t_res"], asked["k"], asked["parts"], asked["fold"]) == (0.6, 2, ["res"], False)
    assert {"kind": "exponential", "alpha": -0.25} in asked["schedules"]
    assert asked["budget"] == {"per_layer": None, "total": 0.2}
    tables = json.loads(out)["tables"]
    columns = tables["steering_cells"]["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in tables["steering_cells"]["rows"]]
    assert {row["method"] for row in rows} == {"none", "single", "constant"}
    assert all(row["share_total"] < 0.5 for row in rows)
    assert {row[2] for row in tables["steering_features"]["rows"]} == {"res"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--themes", "astrology"), "'astrology' is neither a theme nor a file"),
        (("demo", "--judge", "coin"), 'Choose from: "offline", "llm"'),
        (("demo", "--judge", "llm"), "OPENAI_API_KEY"),
        (("demo", "--strengths", "1,two"), "for --strengths: 'two' is no number"),
        (("demo", "--r", "nan"), "for --r: 'nan' is no number"),
        (("demo", "--layers", "two"), "such as 6,12,18 or 6-9"),
        (("demo", "--steering-methods", "luck"), "no steering method luck"),
        (("demo", "--parts", "res,head"), "'head' is no part"),
        (("demo", "--fdr", 0.01, "--t-res", 0.4), "Give either those, or --fdr"),
        (("demo", "--samples", 0), "for --samples: 0 is out of range"),
        (("demo", "--budget-layer", -1), "for --budget-layer: -1 is out of range"),
        (("gemma-scope-2b",), "no texts|there are none for this release"),
        (("a/folder",), "Name the .toml file of one with --themes"),
        (("demo", *SMALL, "--seed", 1), "seed is 0 there and 1 here"),
        (("demo", *SMALL, "--t-res", 0.4), "t_res is 0.5 there and 0.4 here"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(run, work, arguments, words) -> None:
    if SMALL[0] in arguments and SMALL[1] in arguments and not (work / "sweep-demo" / "confirmed").exists():
        run("demo", *SMALL)  # of an earlier test where this worker had it
    code, _, err = run(*arguments)
    assert code == 2
    assert any(word in err for word in words.split("|")), err
