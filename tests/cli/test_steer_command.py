"""`saeflow steer` on the demo pack: pairs of texts, live or as lines, and a plan that repeats itself to the letter."""

from __future__ import annotations

import json

import pytest

from saeflow.cli import steering
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.steering.ask import TOTAL
from saeflow.steering.generate import Request, Sampling, generate
from saeflow.steering.plan import load_plan

SHORT = ("--max-new-tokens", 8)
START = ("--starts", "3/res/541")


@pytest.fixture
def run(monkeypatch, saeflow_here, tmp_path):
    """Run the command; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return lambda *arguments: saeflow_here("steer", *arguments)


def test_steered_and_unsteered_text_of_each_seed_are_told_under_the_plan(run):
    code, out, _ = run("demo", "I think", *START, *SHORT, "--samples", 2, "--seed", 7)
    assert code == 0
    for words in ("features to activate, at layers", "3/res/541", "strength", "as a share of the centred norm"):
        assert words in out
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("seed")] == ["seed 7", "seed 8"]
    steered = [line for line in lines if line.startswith("steered: I think")]
    unsteered = [line for line in lines if line.startswith("unsteered: I think")]
    assert len(steered) == len(unsteered) == 2
    assert all(a[len("steered: ") :] != b[len("unsteered: ") :] for a, b in zip(steered, unsteered, strict=True))
    assert sum(line.startswith("changed while writing: ") for line in lines) == 2


def test_a_plan_and_a_seed_give_the_same_text_each_time(run, tmp_path):
    told = ("demo", "I think", "-n", 3, "--max-new-tokens", 16, "--json")
    _, first, _ = run(*told, "--theme", "physics", "--out", "p.json")
    _, again, _ = run(*told, "--plan", "p.json")
    _, one, _ = run("demo", "I think", "--seed", 1, "--max-new-tokens", 16, "--json", "--plan", "p.json")
    first, again, one = map(json.loads, (first, again, one))
    assert again == first  # the plan itself, every text, every share
    assert one["samples"] == first["samples"][1:2]  # however many samples are asked for
    made = load_plan(tmp_path / "p.json")
    pair = [Request("I think", 1, plan) for plan in (made, None)]
    sampling = Sampling(max_new_tokens=16, temperature=0.8, top_p=0.9)
    texts = [t.text for t in generate(load_model("demo"), load_dictionaries("demo"), pair, sampling)]
    assert texts == [one["samples"][0][name]["text"] for name in ("steered", "unsteered")]


def test_json_has_the_plan_the_settings_and_the_shares(run):
    _, out, _ = run("demo", "I think", *START, *SHORT, "--json", "--temperature", 0, "--upto", 3, "--reach", "single")
    told = json.loads(out)
    assert told["sampling"] == {"max_new_tokens": 8, "temperature": 0.0, "top_p": 0.9}
    assert (told["release"], told["model"], told["prompt"]) == ("demo", "demo", "I think")
    assert {step["feature"].split("/")[0] for step in told["plan"]["steps"]} == {"3"}
    [sample] = told["samples"]
    assert sample["steered"]["text"] != sample["unsteered"]["text"]
    assert sample["steered"]["tokens"] == sample["unsteered"]["tokens"] == 8
    assert 0 < sample["steered"]["share_total"] == pytest.approx(sample["steered"]["share_layer"])


def test_without_a_strength_the_plan_keeps_within_the_default_budget(run):
    _, out, _ = run("demo", "I think", *START, *SHORT, "--strength-end", 8, "--json")
    budget = json.loads(out)["plan"]["made_by"]["budget"]
    assert budget["total"] == TOTAL
    assert budget["after"]["total"] == pytest.approx(TOTAL, rel=1e-3)
    _, out, _ = run("demo", "I think", *START, *SHORT, "--json", "--strength", 1)
    plain = json.loads(out)["plan"]["made_by"]
    assert "budget" not in plain
    assert plain["schedule"]["s"] == 1
    _, out, _ = run("demo", "I think", *START, *SHORT, "--json", "--strength", 9, "--budget-total", 0.1)
    assert json.loads(out)["plan"]["made_by"]["budget"]["after"]["total"] == pytest.approx(0.1, rel=1e-3)


def test_the_defaults_steer_towards_the_theme(run):
    words = ("force", "energy", "wave", "charge", "veloc", "speed", "object", "magn", "electric", "distance")
    _, out, _ = run("demo", "I think", "--theme", "physics", "--samples", 6, "--json")
    samples = json.loads(out)["samples"]
    counts = {
        name: sum(sample[name]["text"].lower().count(word) for sample in samples for word in words)
        for name in ("steered", "unsteered")
    }
    assert counts["steered"] >= 6 + 2 * counts["unsteered"]


def test_suppression_takes_a_factor_and_writes_longer_texts(run):
    _, out, _ = run("demo", "The electric charge", *START, "--suppress", "--json", "--r", -1)
    told = json.loads(out)
    assert told["plan"]["direction"] == "suppress"
    assert {step["r"] for step in told["plan"]["steps"]} == {-1.0}
    assert told["sampling"]["max_new_tokens"] == 96
    assert told["samples"][0]["steered"]["text"] != told["samples"][0]["unsteered"]["text"]


def test_an_edited_plan_does_what_it_says(run, tmp_path):
    run("demo", "I think", *START, *SHORT, "--out", "p.json")
    text = json.loads((tmp_path / "p.json").read_text())
    for step in text["steps"]:
        step["strength"] = 0.0
    (tmp_path / "p.json").write_text(json.dumps(text))
    _, out, _ = run("demo", "I think", "--plan", "p.json", *SHORT, "--json")
    [sample] = json.loads(out)["samples"]
    assert sample["steered"] == {**sample["unsteered"], "share_layer": 0.0, "share_total": 0.0}


def test_a_plan_that_reaches_no_token_is_said_to_change_nothing(run, tmp_path):
    run("demo", "I think", *START, *SHORT, "--out", "p.json")
    text = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**text, "tokens": {"start": 40, "stop": 50}}))
    _, out, _ = run("demo", "I think", "--plan", "p.json", *SHORT)
    assert "Only tokens at positions 40 to 49 are changed" in out
    assert "changed while writing: nothing" in out


def test_a_terminal_shows_two_columns_that_grow(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    code, out, _ = run("demo", "I think", *START, *SHORT)
    assert code == 0
    last = out[out.rindex("unsteered") :]
    assert last.count("I think") == 2
    assert "steered: I think" not in out
    assert "changed while writing" in last


def test_line_breaks_are_told_as_such_where_a_text_is_a_line(run):
    assert steering._line("a\nb\\n") == "a\\nb\\\\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*START, "-n", 0), "for -n: 0 is out of range. Give 1 or more"),
        ((), "--theme"),
        (("--theme", "no-such-theme"), "no-such-theme"),
        (("--starts", "3/resid/1"), "for --starts: '3/resid/1' is no feature"),
        (("--plan", "p.json", "--theme", "physics"), "--theme would be ignored"),
        (("--plan", "p.json", *START, "--suppress"), "--starts and --suppress would be ignored"),
        (("--plan", "nothing.json"), "nothing.json: no plan can be read here"),
        (("--plan", "other.json"), "a plan for the features of gemma-scope-2b, and demo was named"),
        ((*START, "--top-p", 0), "for --top-p: 0 is out of range"),
        ((*START, "--schedule", "square"), 'Invalid value "square" for --schedule'),
        ((*START, "--reach", "single"), "upto"),
    ],
)
def test_what_cannot_be_steered_is_refused(run, tmp_path, arguments, message):
    step = {"feature": "3/res/1", "strength": 1.0}
    other = {"format": "saeflow-plan", "version": 1, "direction": "activate", "release": "gemma-scope-2b"}
    (tmp_path / "other.json").write_text(json.dumps(other | {"steps": [step]}))
    code, _, told = run("demo", "I think", *arguments)
    assert code == 2
    assert message in told
