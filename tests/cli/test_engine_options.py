"""Every long command takes the same options for where it runs, and hands them to the engine."""

import pytest

from saeflow import engines
from saeflow.engines import InProcess

GIVEN = ("--engine", "ray", "--workers", "3", "--address", "head:6379", "--cpus", "2", "--gpus", "0.5")
COMMANDS = {
    "atlas": ("atlas", "build", "demo", "--parts", "res"),
    "origins": ("origins", "demo", "--texts", "demo:stories", "--n-texts", "1", "--layers", "2"),
    "deactivate": ("deactivate", "demo", "--texts", "demo:stories", "--n-texts", "1", "--layers", "2"),
    "transition": ("transition", "demo", "--layers", "0"),
    "sweep": ("sweep", "demo", "--themes", "rain"),
}


class Opened(Exception):
    """The engine was opened."""


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_options_reach_the_engine_before_anything_is_loaded(saeflow, monkeypatch, command):
    told = {}

    def opened(name, **options):
        told.update(options, name=name)
        raise Opened

    monkeypatch.setattr(engines, "open_engine", opened)
    with pytest.raises(Opened):
        saeflow(*command, *GIVEN)
    assert told == {"name": "ray", "workers": 3, "address": "head:6379", "cpus": 2, "gpus": 0.5}


def test_units_run_on_the_engine_that_was_asked_for(saeflow, monkeypatch, tmp_path):
    names = []

    class Noted(InProcess):
        def run(self, work, units, *, name):
            names.append(name)
            return super().run(work, units, name=name)

    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: Noted())
    code, _, err = saeflow("atlas", "build", "demo", "--parts", "mlp,res", "--out", tmp_path / "atlas")
    assert code == 0, err
    code, _, err = saeflow(
        "origins",
        "demo",
        "--texts",
        "demo:stories",
        "--n-texts",
        "1",
        "--layers",
        "2",
        "--methods",
        "cosine",
        "--out",
        tmp_path / "origins",
    )
    assert code == 0, err
    assert names == ["pairs of sites", "origins"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "slurm"), "no engine 'slurm'"),
        (("--workers", "2"), "Take pool"),
        (("--engine", "pool", "--gpus", "1"), "hands out no GPUs"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(saeflow, options, words):
    code, _, err = saeflow("origins", "demo", *options)
    assert code == 2
    assert words in err
