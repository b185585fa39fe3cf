"""saeflow's own folder: what is saved is read back, and a release.json that is wrong is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import H, one, release
from safetensors.torch import load_file

from saeflow.errors import BadFile, InvalidArgument, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import TopK
from saeflow.sources.formats import load, save_release
from saeflow.sources.library import load_dictionaries


def test_a_saved_release_in_float32_is_read_back_exactly(tmp_path: Path):
    made, h = release(torch.float32, tmp_path), torch.from_numpy(H)
    back = load(tmp_path)
    assert isinstance(back, dict)
    assert list(back) == sorted(made)
    for site, d in made.items():
        assert (back[site].tap, back[site].preprocessing) == (d.tap, d.preprocessing)
        torch.testing.assert_close(back[site].encode(h), d.encode(h), rtol=0, atol=0)
        assert back[site].activation.kind is d.activation.kind
    assert one(tmp_path, Site.parse("0/att")).activation == TopK(2)


def test_a_saved_release_in_float16_is_read_as_float32_and_thresholds_are_kept(tmp_path: Path):
    made = release(torch.float16, tmp_path)
    site = Site.parse("0/res")
    stored = load_file(tmp_path / "0.res.safetensors")
    assert {name: x.dtype for name, x in stored.items() if name.startswith("W")} == dict.fromkeys(
        ("W_enc", "W_dec"), torch.float16
    )
    back = one(tmp_path, site)
    assert back.W_dec.dtype is back.b_enc.dtype is torch.float32
    torch.testing.assert_close(back.W_dec, made[site].W_dec.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(back.activation.threshold, made[site].activation.threshold, rtol=0, atol=0)


def test_in_8_bits_every_value_is_the_nearest_step_of_its_row(tmp_path: Path):
    made = release(torch.int8, tmp_path)
    site = Site.parse("0/res")
    stored = load_file(tmp_path / "0.res.safetensors")
    assert (stored["W_dec"].dtype, stored["W_dec_scale"].dtype) == (torch.int8, torch.float32)
    back = one(tmp_path, site)
    for name in ("W_enc", "W_dec"):
        was, got = getattr(made[site], name), getattr(back, name)
        step = was.abs().amax(dim=1, keepdim=True) / 127
        assert bool(((got - was).abs() <= step * 0.5001).all())
        assert not torch.equal(got, was)
    assert torch.equal(back.b_enc, made[site].b_enc)
    # rows read by range, as matching does, are those of the whole
    assert torch.equal(back.rows(1, 3).W_dec, back.W_dec[1:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_a_feature_that_writes_nothing_is_saved_in_every_type(tmp_path: Path, dtype: torch.dtype):
    made = release(torch.float32, tmp_path / "in")
    site = Site.parse("0/res")
    made[site].W_dec[1] = 0
    save_release(tmp_path / "out", {site: made[site]}, name="n", model="m", dtype=dtype)
    assert one(tmp_path / "out", site).W_dec.any(dim=1).tolist() == made[site].W_dec.any(dim=1).tolist()


@pytest.mark.parametrize("bad", [1e-44, float("nan"), float("inf")])
def test_a_row_that_8_bits_cannot_hold_is_refused(tmp_path: Path, bad: float):
    made = release(torch.float32, tmp_path)
    site = Site.parse("0/res")
    made[site].W_dec[1] = bad
    with pytest.raises(InvalidArgument, match=r"does not fit torch\.int8"):
        save_release(tmp_path / "out", {site: made[site]}, name="n", model="m", dtype=torch.int8)


def test_release_json_says_what_the_format_says(tmp_path: Path):
    release(torch.float16, tmp_path)
    told = json.loads((tmp_path / "release.json").read_text())
    assert (told["format"], told["version"], told["name"], told["model"]) == (
        "saeflow-dictionaries",
        1,
        "tiny",
        "none/tiny",
    )
    entry = {"file": "0.res.safetensors", "tap": "res", "activation": {"kind": "jumprelu"}}
    assert told["sites"]["0/res"] == entry
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["release.json", *(entry["file"] for entry in told["sites"].values())]
    )


def test_a_write_that_fails_leaves_no_release_json_and_no_part_file(tmp_path: Path):
    made = release(torch.float16, tmp_path)
    bad = made[Site.parse("1/res")]
    bad.W_dec[0] *= 1e-12
    with pytest.raises(InvalidArgument, match=r"W_dec of the dictionary at 1/res .*float32"):
        save_release(tmp_path, made, name="tiny", model="none/tiny")
    assert not (tmp_path / "release.json").exists()
    assert not list(tmp_path.glob("*.part"))


def test_an_empty_release_is_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="no dictionary to write"):
        save_release(tmp_path, {}, name="x", model="y")


def _edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    release(torch.float16, folder)
    told = json.loads((folder / "release.json").read_text())
    edit(told)
    (folder / "release.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda r: r.update(version=2), UnsupportedFormat, r"release\.json: format and version"),
        (lambda r: r.pop("model"), BadFile, r"release\.json: entry 'model' is None"),
        (lambda r: r.update(sites={"0/foo": {}}), BadFile, r"release\.json: '0/foo' is no site"),
        (lambda r: r["sites"]["0/res"].update(file="../x"), BadFile, r"site 0/res: file '\.\./x' is no plain"),
        (lambda r: r["sites"]["0/res"].update(tap="q"), UnsupportedFormat, r"site 0/res: Tap 'q'"),
        (lambda r: r["sites"]["0/res"]["activation"].clear(), BadFile, r"site 0/res: entry 'kind'"),
        (lambda r: r["sites"]["0/att"]["activation"].pop("k"), BadFile, r"site 0/att: entry 'k'"),
        (lambda r: r["sites"]["0/res"].update(preprocessing={"x": 1}), UnsupportedFormat, r"\['x'\]"),
        (lambda r: r["sites"]["0/res"].update(preprocessing=["norm"]), BadFile, r"'preprocessing' is \['norm'\], exp"),
        (lambda r: r["sites"]["0/res"].update(preprocessing=None), BadFile, "'preprocessing' is None, expected dict"),
        (lambda r: r["sites"]["0/res"].update(training="own"), BadFile, "site 0/res: entry 'training' is 'own'"),
        (lambda r: r["sites"]["0/res"].update(training=[]), BadFile, r"site 0/res: entry 'training' is \[\]"),
        (lambda r: r["sites"]["0/res"].update(file="gone.safetensors"), BadFile, r"gone\.safetensors: cannot"),
    ],
)
def test_a_release_json_that_is_wrong_is_refused_by_entry(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        load(_edited(tmp_path, edit))


def test_an_entry_that_is_no_site_is_left_out_and_a_pattern_picks_sites(tmp_path: Path):
    folder = _edited(tmp_path, lambda r: r["sites"].update({"embed": {}, "2/res": "odd"}))
    found = load_dictionaries(folder)
    assert ([*map(str, found)], {*found.left_out}) == (["0/att", "0/res", "1/mlp", "1/res"], {"embed", "2/res"})
    assert [*map(str, load_dictionaries(folder, pattern="*/res"))] == ["0/res", "1/res"]
