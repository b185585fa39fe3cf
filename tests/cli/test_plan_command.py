"""`saeflow plan`: what it prints and writes is the plan the library builds, and a careless option gets one message."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from saeflow.flow import Thresholds
from saeflow.ids import FeatureId, Part, Site
from saeflow.matching.atlas import open_atlas
from saeflow.matching.build import build_atlas
from saeflow.sources.formats import save_release
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.growth import Reach
from saeflow.steering.output_score import output_scores
from saeflow.steering.plan import SteeringDirection, SteeringPlan, load_plan
from saeflow.steering.schedule import Constant, Exponential, Linear

from ..sources.tiny_models import N_LAYERS, TEXTS, tiny_hf_model, tiny_tokenizer
from ..steering.dictionaries import random_dictionary

START = FeatureId.parse("1/res/3")
CUT = ("--t-res", "0.3", "--t-mlp", "0.35", "--t-att", "0.35", "--k", "2")
THRESHOLDS = Thresholds(res=0.3, mlp=0.35, att=0.35)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A release, its atlas and its model on disk, with texts and a theme."""
    root = tmp_path_factory.mktemp("tiny")
    sites = [Site(layer, part) for layer in range(N_LAYERS) for part in Part]
    made = {site: random_dictionary(site, n_features=40) for site in sites}
    save_release(root / "release", made, name="tiny", model=str(root / "model"), dtype=torch.float32)
    build_atlas(made, out=root / "atlas", k=5, release="tiny")
    tiny_hf_model("llama").save_pretrained(root / "model")
    tiny_tokenizer().save_pretrained(root / "model")
    (root / "texts.txt").write_text("\n\n".join(TEXTS * 5))
    (root / "tides.toml").write_text(
        f'subject = "tides"\nstarts = ["{START}"]\nexamples = ["w5 w9 w12 w7"]\n[activate]\nprompt = "w5"\n'
    )
    return root


@pytest.fixture
def ran(place, monkeypatch, saeflow_here, tmp_path):
    """`saeflow plan RELEASE --atlas ATLAS ...` in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    default = ("--atlas", place / "atlas")
    return lambda *options, release=place / "release", atlas=default: saeflow_here("plan", release, *atlas, *options)


@pytest.fixture
def run(ran):
    """The same, which must succeed; returns stdout."""

    def call(*options, **more):
        code, out, err = ran(*options, **more)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(ran):
    """The same, which must be refused with exit code 2; returns stderr."""

    def call(*options, **more):
        code, out, err = ran(*options, **more)
        assert (code, out) == (2, "")
        return err

    return call


def request(place, **more):
    return PlanRequest(
        **{"release": str(place / "release"), "starts": (START,), "thresholds": THRESHOLDS, "k": 2, **more}
    )


def test_the_printed_json_is_the_plan_and_nothing_else(place, run):
    said = run("--starts", START, *CUT, "-s", 3, "--schedule", "constant", "--no-shares", "--json")
    expected = build_plan(
        request(place, schedule=Constant(3.0)),
        atlas=open_atlas(place / "atlas"),
        dictionaries=load_dictionaries(place / "release"),
    )
    read = SteeringPlan.from_json(said)
    assert read.steps == expected.steps
    assert read.made_by["schedule"] == {"kind": "constant", "s": 3.0}
    assert said == read.to_json()


def test_options_reach_the_plan(place, run):
    def made(*options):
        return SteeringPlan.from_json(run("--starts", START, *CUT, *options, "--no-fold", "--no-shares", "--json"))

    def expected(**more):
        return build_plan(request(place, fold=False, **more), atlas=open_atlas(place / "atlas")).steps

    linear = ("--schedule", "linear", "-s", 8, "--strength-end", 0.5)
    assert made(*linear).steps == expected(schedule=Linear(8.0, 0.5))
    exponential = ("--schedule", "exponential", "--strength", 2, "--alpha", -0.25)
    assert made(*exponential).steps == expected(schedule=Exponential(2.0, -0.25))
    one = ("--suppress", "--r", -2, "--reach", "single", "--upto", 1)
    assert made(*one).steps == expected(direction=SteeringDirection.SUPPRESS, r=-2.0, reach=Reach.SINGLE, upto=1)
    upto = ("--reach", "cumulative", "--upto", 1, "--parts", "res,att")
    assert made(*upto).steps == expected(reach=Reach.CUMULATIVE, upto=1, parts=(Part.RES, Part.ATT))
    victim = next(f for f in made().features if f != START)
    fewer = made("--drop", f"{victim}, ", "--min-score", 0.4)
    assert fewer.steps == expected(drop={victim: "dropped by hand"}, min_score=0.4)
    assert victim in {gone.feature for gone in fewer.dropped}


def test_the_table_tells_steps_drops_shares_and_the_budget(place, run, tmp_path):
    victim = FeatureId.parse("1/res/3")
    texts = ("--texts", place / "texts.txt")
    full = run("--starts", START, *CUT, *texts, "--out", "p.json")
    plan = load_plan(tmp_path / "p.json")
    for step in plan.steps:
        assert any(str(step.feature) in line and f"{step.value:.3f}" in line for line in full.splitlines())
    assert f"{len(plan.steps)} features to activate, at layers 0, 1, 2" in full
    assert f"all together, at the last of them: {plan.made_by['shares']['total']:.1%}" in full
    assert "left out" not in full
    assert "p.json" in full
    tight = run("--starts", START, *CUT, *texts, "--budget-layer", 0.05, "--min-score", 0.5)
    assert "Weakened to" in tight
    assert "5.0% for a layer" in tight
    assert "below 0.5" in tight
    loose = run("--starts", START, *CUT, *texts, "--budget-total", 99)
    assert "holds without weakening" in loose
    unmeasured = run("--starts", victim, *CUT, "--no-shares")
    assert "were not measured" in unmeasured


def test_a_theme_is_measured_on_its_own_texts(place, run):
    theme = ("--theme", place / "tides.toml", *CUT, "--json")
    own = SteeringPlan.from_json(run(*theme))
    other = SteeringPlan.from_json(run(*theme, "--texts", place / "texts.txt"))
    assert own.theme == "tides"
    assert own.steps == other.steps
    assert own.made_by["shares"] != other.made_by["shares"]


def test_output_scores_leave_features_out(place, run):
    features = SteeringPlan.from_json(run("--starts", START, *CUT, "--no-fold", "--no-shares", "--json")).features
    scores = output_scores(load_model(place / "model"), load_dictionaries(place / "release"), features)
    least = sorted(scores.values())[2]
    said = run("--starts", START, *CUT, "--min-output-score", least, "--no-shares", "--no-fold", "--json")
    read = SteeringPlan.from_json(said)
    assert {gone.feature for gone in read.dropped} == {f for f, score in scores.items() if score < least}
    assert len(read.dropped) == 2


def test_a_release_without_a_model_says_that_it_needs_one(place, run, refused, tmp_path):
    made = load_dictionaries(place / "release")
    save_release(tmp_path / "bare", dict(made), name="bare", model="", dtype=torch.float32)
    needs_model = refused("--starts", START, *CUT, "--budget-total", 0.1, release=tmp_path / "bare")
    assert "which model it is of. Give it with --model" in needs_model
    told = run("--starts", START, *CUT, release=tmp_path / "bare")
    assert "were not measured" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "needs features to start from"),
        (("--starts", "1-res-3"), "for --starts: '1-res-3' is no feature"),
        (("--starts", "1/res/99"), "0 to 39"),
        (("--starts", START, "--drop", "1/res"), "for --drop: '1/res' is no feature"),
        (("--starts", START, "--drop", "0/res/39"), "0/res/39 to drop"),
        (("--starts", START, "--reach", "half"), '"half" for --reach. Choose from: "single", "cumulative", "span"'),
        (("--starts", START, "--reach", "single"), "reach single needs a layer"),
        (("--starts", START, "--upto", 1), "--upto 1 has no meaning"),
        (("--starts", START, "--reach", "single", "--upto", 9), "There are targets at layers"),
        (("--starts", START, "--schedule", "cubic"), '"cubic" for --schedule. Choose from: "constant", "linear"'),
        (("--starts", START, "--parts", "res,mpl"), "for --parts: 'mpl' is no part"),
        (("--starts", START, "--parts", ","), "for --parts: ',' holds no value"),
        (("--starts", START, "--k", 9), "between 1 and 5"),
        (("--starts", START, "--t-res", 7), "a cosine, -1 to 1"),
        (("--starts", START, "--fdr", 0.01), "saeflow atlas calibrate"),
        (("--starts", START, "--fdr", 0.01, "--t-res", 0.4), "either those, or --fdr"),
        (("--starts", START, "--strength", 2, "--suppress"), "--strength is to activate, and would be ignored"),
        (("--starts", START, "--r", -1), "--r is to suppress, and would be ignored"),
        (("--starts", START, "--strength", "nan"), "for --strength: 'nan' is no number"),
        (("--starts", START, "--r", "nan", "--suppress"), "for --r: 'nan' is no number"),
        (("--starts", START, "--budget-layer", 0), "for --budget-layer: 0 is out of range"),
        (("--starts", START, "--texts", "nowhere"), "no dataset 'nowhere'"),
        (("--theme", "nowhere.toml"), "file: give its path"),
    ],
)
def test_a_careless_option_gets_one_message_before_anything_is_loaded(refused, monkeypatch, options, said):
    def never(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("saeflow.sources.model.load_model", never)
    assert said in refused(*options)


def test_an_unknown_release_is_named(refused):
    assert "nowhere" in refused("--starts", START, release="nowhere", atlas=())


def test_a_plan_of_the_demo_pack_is_made_with_and_without_the_model(run):
    bare = SteeringPlan.from_json(
        run("--starts", "3/res/541", "--no-fold", "--no-shares", "--fdr", 0.01, "--json", release="demo", atlas=())
    )
    assert bare.release == bare.model == "demo"
    assert FeatureId.parse("3/res/541") in bare.features
    assert all(step.label for step in bare.steps)
    full = SteeringPlan.from_json(
        run("--starts", "3/res/541", "--fdr", 0.01, "--budget-total", 0.2, "--json", release="demo", atlas=())
    )
    assert full.features == bare.features
    assert 0.15 < full.made_by["shares"]["total"] <= 0.2


def test_without_folding_and_shares_no_torch_is_loaded(place):
    code = (
        "import sys\nfrom saeflow.cli import main\n"
        "sys.argv = ['saeflow', 'plan', 'demo', '--start', '3/res/541', '--no-fold', '--no-shares', '--json']\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["format"] == "saeflow-plan"
