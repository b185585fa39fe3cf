"""`saeflow train`: what it needs, what it refuses, and a run from texts to folders."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from saeflow.sources.library import load_dictionaries
from saeflow.training import run as running

from .learning import PlainLearners

SMALL = (
    "--texts", "demo:stories", "--layers", "1-2", "--site", "att,res", "--width", "20,40", "--tokens", 1280,
    "--batch", 128, "--buffer", 400, "--windows", 4, "--context", 64, "--eval-texts", 2, "--lr", 3e-3,
)  # fmt: skip


def test_a_dry_run_says_what_it_needs_and_trains_nothing(saeflow, tmp_path):
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["dictionaries"], told["steps"]) == (0, 4, 10)
    assert told["bytes"]["buffer"] == 400 * 4 * 192 * 4
    assert not (tmp_path / "r").exists()
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL, "--dry-run")
    assert "two checkpoints" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--architecture", "relu"), "no architecture 'relu'"),
        (("--site", "attn"), "Give one or more of res, att, mlp, z, mlp_in, mid"),
        (("--width", "wide"), "--width 'wide' is no list of whole numbers"),
        (("--layers", "1..2"), "Write layers as 6,12,18 or 6-9"),
        (("--dtype", "int8"), "--dtype 'int8' is not known"),
        (("--buffer", "100"), "Give a buffer of 256 or more"),
        (("--lr", "0"), "learning rate 0.0"),
    ],
)
def test_options_outside_their_range_are_refused_with_a_message(saeflow, options, message):
    code, _, err = saeflow("train", "demo", "--out", "r", *SMALL, *options, "--dry-run")
    assert code == 2
    assert message in err


def test_without_the_extra_nothing_is_loaded_and_the_message_names_it(saeflow, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    code, _, err = saeflow("train", "no-such-model", "--out", "r", *SMALL)
    assert code == 2
    assert 'pip install "saeflow[train]"' in err


@pytest.mark.parametrize("real", [False, True], ids=["plain", "sae-lens"])
@pytest.mark.filterwarnings("ignore")
def test_a_run_from_texts_to_folders(saeflow, monkeypatch, tmp_path, real):
    if real and importlib.util.find_spec("sae_lens") is None:
        pytest.skip("sae-lens is not installed: pip install 'saeflow[train]'")
    if not real:
        # the command imports what trains at its own run; the learner is all that is replaced
        monkeypatch.setattr("saeflow.training.lens.extra", lambda module="sae_lens": None)
        monkeypatch.setattr("saeflow.training.lens.SaeLensLearners", PlainLearners)
        monkeypatch.setattr(running, "sae_lens_learners", PlainLearners)
    code, out, err = saeflow("train", "demo", "--out", "r", *SMALL, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [row["site"] for row in told["sites"]] == ["1/att", "1/res", "2/att", "2/res"]
    assert told["settings"]["sparsity"]["l0"] == 6  # 3 % of 192
    opened = load_dictionaries(tmp_path / "r")
    assert [opened[site].n_features for site in opened.sites] == [20, 40, 20, 40]
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 4 * 10
    assert json.loads((tmp_path / "r" / "training.json").read_text())["texts"] == "demo:stories"
    # what was measured is shown where the dictionaries are
    code, out, _ = saeflow("info", "r", "--json")
    shown = json.loads(out)
    assert (code, shown["training"]) == (0, "finished")
    measured = json.loads((tmp_path / "r" / "training.json").read_text())["quality"]
    for row in shown["sites"]:
        for key in ("fve", "l0", "silent", "dead", "loss_recovered"):
            assert row[key] == pytest.approx(measured[row["site"]][key], abs=1e-4)
    # of a run that was stopped, the last that was measured
    whole = (tmp_path / "r" / "training.json").read_text()
    (tmp_path / "r" / "training.json").write_text(
        json.dumps(json.loads(whole) | {"finished": False, "quality": {}})
    )
    stopped = json.loads(saeflow("info", "r", "--json")[1])
    assert ("not finished" in stopped["training"], stopped["sites"]) == (True, shown["sites"])
    (tmp_path / "r" / "training.json").write_text("{")
    assert "damaged" in json.loads(saeflow("info", "r", "--json")[1])["training"]
    (tmp_path / "r" / "training.json").write_text(whole)
    # again: it is told, not trained
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL)
    assert code == 0
    assert "4 dictionaries in r" in out
    code, _, err = saeflow("train", "demo", "--out", "r", *SMALL, "--seed", 1)
    assert code == 2
    assert "holds another run" in err
