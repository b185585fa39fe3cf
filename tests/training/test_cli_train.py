"""`saeflow train`: what it needs, what it refuses, and a run from texts to folders."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from saeflow.demo.texts import texts
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model
from saeflow.training import ActivationStream, Optimiser, TrainingSettings, sparsity, targets_of
from saeflow.training.sparse_trainer import SparseTrainer
from saeflow.training.text_run import Pace, TextRun, product_seconds
from saeflow.training.trainer_interface import l0_due

SMALL = (
    "--texts",
    "demo:stories",
    "--layers",
    "1-2",
    "--sites",
    "att,res",
    "--width",
    "20,40",
    "--tokens",
    1280,
    "--batch",
    128,
    "--buffer",
    400,
    "--windows",
    4,
    "--max-length",
    64,
    "--n-eval-texts",
    2,
    "--lr",
    3e-3,
)


def test_a_dry_run_says_what_it_needs_and_how_long_it_takes_and_trains_nothing(saeflow, tmp_path):
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL, "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["dictionaries"], told["steps"]) == (0, 4, 10)
    needed = told["bytes"]
    assert needed["buffer"] == 400 * 4 * 192 * 4
    model = load_model("demo").hf_model
    assert needed["model"] == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=1e-3)
    # the loss of 2 texts of 64 tokens, whose logits are far more than 40 features
    assert needed["measuring"] > 3 * 4 * 2 * 64 * model.config.vocab_size
    parts = (needed[key] for key in ("model", "dictionaries", "buffer", "measuring"))
    assert needed["peak"] == sum(parts)
    assert 0 < told["seconds"] < 600
    assert not (tmp_path / "r").exists()
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL, "--dry-run")
    assert "two checkpoints" in out
    assert re.search(r"time: about \d+ s here, from three steps at the target L0, 6, and at that of the first", out)


@pytest.mark.parametrize(("taken", "said"), [((0.002, 0.010), ""), ((0.010, 0.002), "--dtype bfloat16 is faster here")])
def test_a_dry_run_says_that_another_dtype_is_faster_where_it_measures_so(saeflow, monkeypatch, taken, said):
    seconds = dict(zip((torch.float32, torch.bfloat16), taken, strict=True))
    monkeypatch.setattr("saeflow.training.text_run.product_seconds", lambda _model: seconds)
    code, out, _ = saeflow("train", "demo", "--out", "r", *SMALL, "--dry-run")
    assert code == 0
    assert (said in out) if said else ("--dtype" not in out)


def test_products_are_timed_in_both_dtypes():
    taken = product_seconds(load_model("demo"), 64)
    assert set(taken) == {torch.float32, torch.bfloat16}
    assert all(0 < s < 60 for s in taken.values())


def test_most_steps_of_a_probe_are_at_the_target_l0(monkeypatch):
    """What is timed last has the L0 that is asked for, not that of the first weights, and no massive row."""
    seen: list[tuple[float, int]] = []

    class Watched(SparseTrainer):
        def step(self, batch):
            l0 = []
            for name, x in batch.items():
                held = self.weights(name)
                l0.append(float((x @ held.W_enc.T + held.b_enc > held.threshold).float().sum(1).mean()))
            seen.append((sum(l0) / len(l0), len(batch)))
            super().step(batch)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    settings = TrainingSettings(sparsity("jumprelu-l0", l0=4), Optimiser(100_000, 256), ActivationStream(64, 4, 1024))
    targets = targets_of(["res", "mlp"], (1, 2), (96,))
    run = TextRun(load_model("demo"), lambda _pass: texts("stories", 60), targets, settings, 2, trainer=Watched)
    pace = run.probe()
    assert [n for _, n in seen] == [2] * 8
    assert pace.first_l0 == pytest.approx(seen[0][0], rel=0.2)
    assert pace.first_l0 > 8
    assert all(l0 == pytest.approx(4, rel=0.3) for l0, _ in seen[4:])


def test_the_time_of_a_run_is_that_of_its_parts():
    pace = Pace(row=0.001, step=0.5, measurement=7.0, on_the_way=2.0, loss=11.0)
    told = TrainingSettings(
        sparsity("topk", l0=4), Optimiser(1000, 100), ActivationStream(buffer=200), metrics_every=250
    )
    assert pace.seconds(told) == pytest.approx(1200 * 0.001 + 10 * 0.5 + 4 * 2 + 7 + 11)
    # the first three tenths of the steps are denser
    held = replace(told, sparsity=sparsity("jumprelu-l0", l0=4), optimiser=Optimiser(100_000, 100))
    dense = replace(pace, first_step=2.5, first_l0=64)
    l0 = [l0_due(64, 4, step, 1000) for step in range(1000)]
    more = sum(2.0 * (one - 4) / 60 for one in l0)
    assert dense.seconds(held) - pace.seconds(held) == pytest.approx(more, rel=0.01)
    each = replace(told, loss_every_time=True)
    assert pace.seconds(each) == pytest.approx(1200 * 0.001 + 10 * 0.5 + 4 * 2 + 7 + 5 * 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--architecture", "relu"), 'Invalid value "relu" for --architecture. Choose from: "jumprelu"'),
        (("--sites", "attn"), "Give one or more of res, att, mlp, z, mlp_in, mid"),
        (("--width", "wide"), "for --width: 'wide' is no whole number"),
        (("--layers", "1..2"), "for --layers: '1..2' is no whole number. Write 12, or a list such as 6,12,18 or 6-9"),
        (("--dtype", "int8"), '"int8" for --dtype. Choose from: "float32", "bfloat16"'),
        (("--buffer", "100"), "Give a buffer of 256 or more"),
        (("--lr", "0"), "for --lr: 0 is out of range"),
        (("--trainer", "dense"), '"dense" for --trainer. Choose from: "sparse", "sae-lens"'),
    ],
)
def test_options_outside_their_range_are_refused_with_a_message(saeflow, options, message):
    code, _, err = saeflow("train", "demo", "--out", "r", *SMALL, *options, "--dry-run")
    assert code == 2
    assert message in err


def test_sae_lens_is_asked_for_before_a_model_is_loaded(saeflow, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    code, _, err = saeflow("train", "no-such-model", "--out", "r", *SMALL, "--trainer", "sae-lens")
    assert code == 2
    assert "In a clone of saeflow, run `pip install -e '.[train]'`." in err


@pytest.mark.parametrize("trainer", ["sparse", "sae-lens"])
@pytest.mark.filterwarnings("ignore")
def test_a_run_from_texts_to_folders(saeflow, tmp_path, trainer):
    if trainer == "sae-lens" and importlib.util.find_spec("sae_lens") is None:
        pytest.skip("sae-lens is not installed: pip install -e '.[train]'")
    command = ("train", "demo", "--out", "r", *SMALL, "--trainer", trainer)
    code, out, err = saeflow(*command, "--json")
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
    (tmp_path / "r" / "training.json").write_text(json.dumps(json.loads(whole) | {"finished": False, "quality": {}}))
    stopped = json.loads(saeflow("info", "r", "--json")[1])
    assert ("not finished" in stopped["training"], stopped["sites"]) == (True, shown["sites"])
    (tmp_path / "r" / "training.json").write_text("{")
    assert "damaged" in json.loads(saeflow("info", "r", "--json")[1])["training"]
    (tmp_path / "r" / "training.json").write_text(whole)
    # again: it is told, not trained
    code, out, _ = saeflow(*command)
    assert code == 0
    assert "4 dictionaries in r" in out
    missed = [line for line in out.splitlines() if "where 6 was requested" in line]
    assert len(missed) == len(told["L0 missed by"])
    code, _, err = saeflow(*command, "--seed", 1)
    assert code == 2
    assert "holds another run" in err
