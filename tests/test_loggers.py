"""Measurements reach TensorBoard and Weights & Biases as scalars by name and step; a package that lacks is named."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.loggers import LOGGERS, logger, scalars

ROWS = [
    {"site": "2/res", "step": 10, "fve": 0.5, "last": False, "loss": None, "losses": {"mse": 1.5}},
    {"site": "3/res", "step": 10, "fve": float("nan"), "l0": 7},
]
TOLD = [("2/res/fve", 0.5, 10), ("2/res/losses/mse", 1.5, 10), ("3/res/l0", 7.0, 10)]


def test_numbers_are_logged_under_the_words_of_their_row():
    assert list(scalars(ROWS)) == TOLD
    assert list(scalars([{"theme": "a", "method": "none", "score": 1}])) == [("a/none/score", 1.0, 0)]


def test_tensorboard_gets_every_scalar(monkeypatch, tmp_path):
    told = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: told.append(scalar), flush=lambda: told.append("flushed"))
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: told.append(folder) or writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    logger("tensorboard", tmp_path)(ROWS)
    assert told == [str(tmp_path), *TOLD, "flushed"]


def test_wandb_gets_one_call_a_step(monkeypatch, tmp_path):
    told = []
    module = ModuleType("wandb")
    run = SimpleNamespace(log=lambda values, step: told.append((values, step)))
    module.init = lambda **named: told.append(named) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    logger("wandb", tmp_path / "one")(ROWS)
    assert told == [
        {"name": "one", "dir": str(tmp_path)},
        ({"2/res/fve": 0.5, "2/res/losses/mse": 1.5, "3/res/l0": 7.0}, 10),
    ]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=f"pip install {name}"):
        logger(name, tmp_path)


def test_no_name_logs_nowhere_and_an_unknown_one_is_refused(tmp_path):
    assert logger("", tmp_path) is None
    with pytest.raises(InvalidArgument, match=r"Did you mean 'tensorboard'\?"):
        logger("tensorbord", tmp_path)
