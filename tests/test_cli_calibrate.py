"""`saeflow atlas calibrate`, `saeflow graph --calibrated` and `saeflow correlate` on planted things."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saeflow.cli.matching import figure_rows
from saeflow.errors import SaeflowWarning
from saeflow.flow import FlowGraph
from saeflow.matching.atlas import open_atlas, own_copy
from saeflow.matching.build import build_atlas
from saeflow.paper import calibrated_thresholds, svg_text
from saeflow.report.tables import calibration_rows
from saeflow.sources.formats import save_release

from .matching.planted import plant
from .matching.test_correlation import dictionaries
from .sources.tiny_models import tiny_hf_model, tiny_tokenizer


@pytest.fixture
def run(stdout, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stdout


@pytest.fixture
def release(tmp_path):
    made = plant().dictionaries
    save_release(tmp_path / "release", made, name="planted", model="none", dtype=torch.float32)
    build_atlas(made, out=tmp_path / "atlas", k=2, release="planted")
    return tmp_path / "release"


def test_an_atlas_is_calibrated_and_graphs_use_it(run, release, tmp_path):
    told = json.loads(
        run("atlas", "calibrate", release, "--atlas", tmp_path / "atlas", "--rows", 900, "--rotations", 2, "--json")
    )
    atlas = open_atlas(tmp_path / "atlas")
    assert len(told["pairs"]) == len(atlas.nulls) == len(atlas)
    shown = json.loads(run("graph", tmp_path / "atlas", "3/res/1", "--fdr", 0.05, "--json"))
    assert FlowGraph.from_json(json.dumps(shown)).thresholds.cuts
    assert shown["thresholds"]["fdr"] == 0.05
    assert "Thresholds by layer" in run("graph", tmp_path / "atlas", "3/res/1", "--calibrated")


def test_pairs_without_a_cut_are_named_with_the_reason(run, release, tmp_path):
    command = ("atlas", "calibrate", release, "--atlas", tmp_path / "atlas", "--rows", 20, "--rotations", 1)
    with pytest.warns(SaeflowWarning, match="for want of null rows"):
        told = " ".join(run(*command).split())
    with pytest.warns(SaeflowWarning):
        rows = calibration_rows(open_atlas(tmp_path / "atlas"))
    none = [row for row in rows if row["threshold"] >= 1]
    assert none, "20 null rows are too few for a cut"
    assert f"without a cut: {len(none)} of " in told
    assert f"{none[0]['part']} of layer {none[0]['layer']} {none[0]['direction']}" in told
    told = run(*command[:-4], "--rows", 900, "--rotations", 8)
    fewer = [row for row in calibration_rows(open_atlas(tmp_path / "atlas")) if row["threshold"] >= 1]
    assert (f"without a cut: {len(fewer)} of " in told) == bool(fewer)
    assert len(fewer) < len(none)


def test_thresholds_are_drawn_where_asked(run, release, tmp_path):
    run(
        "atlas",
        "calibrate",
        release,
        "--atlas",
        tmp_path / "atlas",
        "--rows",
        900,
        "--rotations",
        2,
        "--out",
        tmp_path / "cuts.svg",
    )
    drawn = (tmp_path / "cuts.svg").read_text(encoding="utf-8")
    cuts = {
        (row["part"], row["layer"]): row["threshold"]
        for row in calibration_rows(open_atlas(tmp_path / "atlas"))
        if row["direction"] == "backward" and row["threshold"] < 1
    }
    assert cuts
    for (part, layer), cut in cuts.items():
        assert f"<title>{part}, layer {layer}: {cut:.3f}</title>" in drawn


def test_a_layer_where_nothing_is_significant_is_a_gap_in_the_figure():
    row = {
        "layer": 2,
        "part": "mlp",
        "direction": "backward",
        "null q50": 0.2,
        "null q99": 0.4,
        "threshold": 1.0,
        "kept": 0.0,
        "kept plain": 0.9,
    }
    (made,) = figure_rows([row, row | {"direction": "forward"}])
    assert made["threshold"] is None
    assert (made["null_q99"], made["kept_fixed"]) == (0.4, 0.9)


def test_a_figure_of_an_unknown_kind_is_refused_before_any_work(refusal, release, tmp_path):
    assert re.search(
        r"cuts\.gif cannot be written",
        refusal("atlas", "calibrate", release, "--atlas", tmp_path / "atlas", "--out", tmp_path / "cuts.gif"),
    )
    assert not open_atlas(tmp_path / "atlas").nulls


def test_the_picture_of_the_docs_is_that_of_the_demo_pack():
    drawn = svg_text(calibrated_thresholds(figure_rows(calibration_rows(open_atlas("demo")))), alone=True)
    shipped = Path(__file__).parent.parent / "docs" / "images" / "demo-thresholds.svg"
    assert shipped.read_text(encoding="utf-8") == drawn


def test_an_atlas_without_nulls_says_how_to_calibrate_it(refusal, release, tmp_path):
    assert re.search("saeflow atlas calibrate", refusal("graph", tmp_path / "atlas", "3/res/1", "--calibrated"))


def test_thresholds_by_hand_and_calibrated_ones_exclude_each_other(refusal, release, tmp_path):
    assert re.search(
        "either those, or --fdr", refusal("graph", tmp_path / "atlas", "3/res/1", "--fdr", 0.1, "--t-res", 0.4)
    )


def test_the_demo_pack_comes_calibrated(run):
    shown = json.loads(run("graph", "demo", "4/res/123", "--calibrated", "--json"))
    cuts = {(row["layer"], row["part"]): row["cut"] for row in shown["thresholds"]["layers"]}
    assert len(cuts) == 17
    assert all(0.3 < cuts[layer, "res"] < 0.7 for layer in range(1, 6))
    assert all(edge["p"] is not None for edge in shown["edges"])


def test_a_release_is_correlated_over_the_texts_of_a_file(run, tmp_path):
    tiny_hf_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    save_release(tmp_path / "saes", dictionaries(), name="tiny", model="none", dtype=torch.float32)
    lines = [json.dumps({"text": f"w5 w{i} w12 w7 w{i + 1} w8 w19 w3"}) for i in range(3, 45)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    said = run(
        "correlate",
        tmp_path / "saes",
        "--texts",
        tmp_path / "texts.jsonl",
        "--model",
        tmp_path / "model",
        "--out",
        tmp_path / "r",
        "--k",
        3,
        "--n-texts",
        20,
    )
    atlas = open_atlas(tmp_path / "r")
    assert (atlas.method, atlas.k, atlas.release) == ("pearson", 3, "tiny")
    assert f"{len(atlas)} tables" in said


def test_what_is_to_know_of_an_answer_is_one_line_of_the_command_line(release, tmp_path):
    code = f"""
import sys
from saeflow.cli import main
for words in (["atlas", "calibrate", {str(release)!r}, "--rows", "100", "--rotations", "1"],
              ["graph", {str(tmp_path / "atlas")!r}, "3/res/1", "--fdr", "0.01"]):
    sys.argv = ["saeflow", *words, *(["--atlas", {str(tmp_path / "atlas")!r}] if words[0] == "atlas" else [])]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"^saeflow: \d+ of \d+ pairs of sites keep no match at fdr=0.01", ran.stderr, re.MULTILINE)
    assert "Warning" not in ran.stderr


def test_the_atlas_of_a_pack_is_copied_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    packed = open_atlas("demo")
    made = own_copy(packed)
    assert made.folder.is_relative_to(tmp_path / "cache")
    assert (list(made), made.nulls) == (list(packed), packed.nulls)
    assert own_copy(made) is made
    assert own_copy(packed).folder == made.folder
