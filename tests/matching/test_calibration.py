"""Nulls are what they say, p-values are exact or on the safe side, and calibrated edges keep their rate."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saeflow.errors import BadFile, CorruptAtlas, InvalidArgument, UnknownSite
from saeflow.ids import Part, Site
from saeflow.matching import calibration
from saeflow.matching.atlas import open_atlas, save_manifest
from saeflow.matching.build import build_atlas
from saeflow.matching.calibration import calibrate, far_sites, like_moments, rotated
from saeflow.matching.null import NullDistribution, nulls_to_bytes, read_nulls
from saeflow.matching.table import cut, p_values, rows_needed
from saeflow.report.tables import atlas_rows, calibration_rows

from .planted import N_FEATURES, dictionary, plant

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import calibration_on_planted as planted_edges

A, B = Site(1, Part.RES), Site(0, Part.RES)


def null_of(scores):
    return NullDistribution.of(A, B, "moments", scores, 0)


def counted(scores, s):
    return (1 + sum(x >= s for x in scores)) / (1 + len(scores))


# --- p-values -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=300), st.floats(-1, 1, width=32))
def test_p_is_the_share_of_null_scores_that_reach_the_score_or_a_little_more(scores, s):
    null = null_of(scores)
    found = null.p_value(s)
    assert found >= counted(scores, s)
    # scores are kept rounded up to six digits, and every rank up to 1/32 too high
    most = counted(scores, s - 2e-6)
    assert found <= most * (1 + 1 / 32) + 1e-12
    assert null.floor <= found <= 1.0


def test_p_is_exact_where_scores_are_highest():
    scores = np.linspace(0.1, 0.9, 5000).tolist()
    null = null_of(scores)
    for s in (0.95, 0.9, 0.8999, 0.897, 0.8955):
        assert null.p_value(s) == pytest.approx(counted(scores, s), abs=1e-12)
    assert null.p_value(0.95) == null.floor == 1 / 5001
    assert null.p_value(0.0) == 1.0


def test_arrays_of_scores_get_the_same_p():
    rng = np.random.default_rng(0)
    null, asked = null_of(rng.normal(0.3, 0.05, 3000).tolist()), rng.normal(0.35, 0.1, 200).astype(np.float32)
    assert p_values(null, asked).tolist() == [null.p_value(float(s)) for s in asked]


def test_quantiles_bound_the_null_from_above():
    scores = np.random.default_rng(0).normal(0.3, 0.05, 4000)
    null = null_of(scores.tolist())
    for share in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
        assert np.mean(scores <= null.quantile(share)) >= share
        assert null.quantile(share) == pytest.approx(np.quantile(scores, share), abs=0.02)
    with pytest.raises(InvalidArgument, match=r"quantile at 1\.5"):
        null.quantile(1.5)


def test_few_scores_are_kept_of_many():
    assert len(null_of(np.linspace(0, 1, 16384).tolist()).scores) < 260


def test_a_null_without_scores_is_refused():
    with pytest.raises(InvalidArgument, match="got none"):
        null_of([])
    with pytest.raises(InvalidArgument, match="cannot keep 2"):
        NullDistribution(A, B, "moments", 100, (0.3, 0.2))


def test_the_cut_is_that_of_benjamini_and_hochberg():
    rng = np.random.default_rng(1)
    null = null_of(rng.normal(0.3, 0.05, 20000).tolist())
    best = np.concatenate([rng.normal(0.3, 0.05, 500), rng.normal(0.6, 0.1, 100)]).astype(np.float32)
    p = np.array([null.p_value(float(s)) for s in best])
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(p[order] <= 0.05 * np.arange(1, 601) / 600)
    kept = {int(i) for i in order[: passed[-1] + 1]}
    line = cut(null, best, 0.05)
    assert {int(i) for i in np.flatnonzero(best >= line)} == kept
    assert 80 < len(kept) < 120


def test_where_nothing_is_significant_the_cut_keeps_nothing():
    null = null_of(np.linspace(0.2, 0.5, 1000).tolist())
    assert cut(null, np.full(50, 0.4, np.float32), 0.01) == 1.0
    for fdr in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(InvalidArgument, match="fdr="):
            cut(null, np.full(5, 0.4, np.float32), fdr)


def test_a_null_with_too_few_scores_says_how_many_would_tell():
    """256 rows keep no match at 1 % unless 39 % of the features have a counterpart; the stated number keeps these."""
    rng = np.random.default_rng(1)
    best = np.concatenate([rng.normal(0.3, 0.05, 950), rng.normal(0.8, 0.02, 50)]).astype(np.float32)
    few = null_of(rng.normal(0.3, 0.05, 256).tolist())
    assert cut(few, best, 0.01) == 1.0
    needed = rows_needed(few, best, 0.01)
    assert needed is not None
    more = null_of(np.clip(rng.normal(0.3, 0.05, needed), None, few.scores[0]).tolist())
    assert cut(more, best, 0.01) < 0.8
    assert rows_needed(more, best, 0.01) is None
    assert rows_needed(few, np.full(50, 0.2, np.float32), 0.01) is None, "no number of rows would keep these"


def test_an_atlas_says_that_its_nulls_are_too_small(planted, atlas):
    made = calibrate(planted.dictionaries, atlas, rows=16, rotations=1)
    with pytest.warns(
        UserWarning, match=r"keep no match at fdr=0.001 for want of null rows.* above all 16, .* --rotations \d"
    ):
        cuts = made.cuts(0.001)
    assert 1.0 in cuts.values()


def test_a_higher_rate_never_raises_the_cut():
    rng = np.random.default_rng(2)
    null = null_of(rng.normal(0.3, 0.05, 5000).tolist())
    best = rng.normal(0.4, 0.15, 400).astype(np.float32)
    cuts = [cut(null, best, fdr) for fdr in (0.001, 0.01, 0.05, 0.2, 0.5)]
    assert cuts == sorted(cuts, reverse=True)
    assert cuts[0] > cuts[-1]


def test_nulls_are_the_same_after_a_file(tmp_path):
    other = NullDistribution.of(B, A, "far", np.linspace(0, 1, 99).tolist(), seed=3)
    nulls = {(A, B): null_of([0.1, 0.5, 0.3]), (B, A): other}
    (tmp_path / "n.json").write_bytes(nulls_to_bytes(nulls))
    found = read_nulls(tmp_path / "n.json")
    assert found == nulls
    assert nulls_to_bytes(found) == nulls_to_bytes(nulls)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "saeflow-nulls", "version": 9, "nulls": []}'])
def test_a_file_of_another_kind_is_refused(text, tmp_path):
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(BadFile, match="saeflow atlas calibrate"):
        read_nulls(tmp_path / "n.json")
    with pytest.raises(BadFile):
        read_nulls(tmp_path / "missing.json")


# --- rows of the null -----------------------------------------------------------------------------------


def anisotropic(n=400, d=24):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, d, generator=generator) * torch.linspace(3, 0.2, d) + 1.0
    return rows / rows.norm(dim=1, keepdim=True)


def test_rotated_rows_are_uniform_directions():
    drawn = rotated(anisotropic(), 20000, torch.Generator().manual_seed(1))
    assert drawn.norm(dim=1).sub(1).abs().max() < 1e-5
    assert drawn.mean(dim=0).abs().max() < 0.01
    assert (drawn.T @ drawn / len(drawn) - torch.eye(24) / 24).abs().max() < 0.003


def test_rows_like_the_moments_keep_the_mean_and_the_strong_directions():
    rows = anisotropic()
    drawn = like_moments(rows, 20000, torch.Generator().manual_seed(1))
    assert drawn.norm(dim=1).sub(1).abs().max() < 1e-5
    mean = rows.mean(0)
    assert torch.cosine_similarity(drawn.mean(0), mean, dim=0) > 0.99
    centred, own = drawn - drawn.mean(0), rows - mean
    found, expected = (
        torch.linalg.eigvalsh(centred.T @ centred / len(drawn)),
        torch.linalg.eigvalsh(own.T @ own / 400),
    )
    assert found[-1] == pytest.approx(float(expected[-1]), rel=0.15)
    assert found[0] < 0.2 * found[-1]


def test_rows_that_span_little_stay_within_it():
    plane = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) @ plane
    rows = rows / rows.norm(dim=1, keepdim=True)
    drawn = like_moments(rows, 100, torch.Generator().manual_seed(2))
    basis = torch.linalg.qr(plane.T).Q
    assert (drawn - drawn @ basis @ basis.T).abs().max() < 1e-5


@pytest.mark.parametrize("depth", [5, 6, 26, 27])
def test_far_is_half_the_depth_and_every_site_has_some(depth):
    sites = [Site(layer, part) for layer in range(depth) for part in Part]
    for target in sites:
        for part in Part:
            far = far_sites(Site(target.layer, part), target, sites)
            assert far
            assert all(s.part is part and abs(s.layer - target.layer) >= (depth - 1) / 2 for s in far)


def test_a_neighbour_is_never_far():
    sites = [Site(layer, Part.RES) for layer in range(3)]
    assert far_sites(sites[1], sites[0], sites) == [sites[2]]
    assert far_sites(sites[2], sites[1], sites) == []


def test_a_release_of_two_layers_has_no_far_null(planted, tmp_path):
    two = {site: d for site, d in planted.dictionaries.items() if site.layer < 2}
    shallow = build_atlas(two, out=tmp_path / "two", k=1)
    with pytest.raises(UnknownSite, match="half the depth away"):
        calibrate(two, shallow, rows=10, rotations=1, null="far")


# --- an atlas -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    return plant()


@pytest.fixture
def atlas(planted, tmp_path):
    return build_atlas(planted.dictionaries, out=tmp_path / "atlas", k=2, release="planted")


@pytest.mark.parametrize("null", calibration.KINDS)
def test_every_table_gets_a_null_that_opens_again(null, planted, atlas):
    made = calibrate(planted.dictionaries, atlas, rows=60, rotations=2, null=null)
    assert set(made.nulls) == set(atlas)
    again = open_atlas(atlas.folder)
    assert again.nulls == made.nulls
    again.verify()
    for null_found in again.nulls.values():
        assert null_found.kind == null
        assert null_found.n == 120 or null == "far"
        assert -1 <= null_found.quantile(0.5) <= null_found.quantile(0.99) <= 1 + 1e-6
    assert sorted(p.name for p in atlas.folder.iterdir() if "calib" in p.name) == ["calibration.json"]


@pytest.mark.parametrize("null", calibration.KINDS)
def test_features_without_a_direction_change_no_null_and_no_cut(null, planted, tmp_path):
    """The null of a dictionary with rows of zeros at its end is the null without them."""

    def calibrated(name, dead):
        more = {
            site: dictionary(site, torch.cat([d.W_dec, torch.zeros(dead, d.d_out)]))
            for site, d in planted.dictionaries.items()
        }
        return calibrate(more, build_atlas(more, out=tmp_path / name, k=2), rows=N_FEATURES, rotations=1, null=null)

    plain, with_dead = calibrated("plain", 0), calibrated("dead", 7)
    for pair, made in plain.nulls.items():
        found = with_dead.nulls[pair]
        assert found.n == made.n
        if null != "far":  # which rows are drawn does not change what a row of zeros could add
            assert found.scores == pytest.approx(made.scores, abs=2e-6)
    if null != "far":
        assert with_dead.cuts(0.3) == pytest.approx(plain.cuts(0.3), abs=2e-6)
    _, rows = atlas_rows(with_dead)
    assert {row["no match"] for row in rows} == {7}


def test_a_null_is_the_best_cosine_of_the_rows_that_were_drawn(planted, atlas, monkeypatch):
    drawn = []
    real = calibration.like_moments

    def watched(rows, n, generator):
        drawn.append(real(rows, n, generator))
        return drawn[-1]

    monkeypatch.setattr(calibration, "like_moments", watched)
    made = calibrate(planted.dictionaries, atlas, rows=30, rotations=1)
    assert len(drawn) == len(atlas)
    rows = planted.dictionaries[list(atlas)[-1][1]].directions()
    best = (drawn[-1].double() @ rows.double().T).amax(1)
    assert made.null(*list(atlas)[-1]).scores == pytest.approx(sorted(best.tolist(), reverse=True), abs=2e-6)


def test_an_atlas_that_was_not_calibrated_opens_and_says_how(atlas):
    assert atlas.null(A, B) is None
    assert atlas.nulls == {}
    with pytest.raises(InvalidArgument, match="saeflow atlas calibrate"):
        atlas.cuts(0.01)


def test_a_null_that_was_changed_is_found(planted, atlas):
    calibrate(planted.dictionaries, atlas, rows=20, rotations=1)
    path = atlas.folder / "calibration.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1))
    with pytest.raises(CorruptAtlas, match=r"calibration\.json"):
        open_atlas(atlas.folder).null(A, B)
    with pytest.raises(CorruptAtlas, match=r"calibration\.json"):
        open_atlas(atlas.folder).verify()


def test_the_seed_decides_and_nothing_else_does(planted, atlas):
    torch.manual_seed(1)
    first = calibrate(planted.dictionaries, atlas, rows=40, rotations=1, seed=3).nulls
    torch.manual_seed(2)
    assert calibrate(planted.dictionaries, atlas, rows=40, rotations=1, seed=3).nulls == first
    assert calibrate(planted.dictionaries, atlas, rows=40, rotations=1, seed=4).nulls != first


def test_the_directions_of_two_sites_at_most_stay_in_memory(planted, atlas, monkeypatch):
    most = []
    real = calibration._Draw.keep

    def watched(self, sites):
        most.append(len(self._sides))
        real(self, sites)

    monkeypatch.setattr(calibration._Draw, "keep", watched)
    calibrate(planted.dictionaries, atlas, rows=10, rotations=1)
    assert max(most) <= 6


def test_dictionaries_the_atlas_was_not_built_from_are_refused(atlas):
    with pytest.raises(InvalidArgument, match="decoders differ at 0/att"):
        calibrate(plant(seed=9).dictionaries, atlas, rows=10, rotations=1)
    assert open_atlas(atlas.folder).calibration is None


def test_what_cannot_be_drawn_is_said(planted, atlas):
    for name in ("rows", "rotations"):
        with pytest.raises(InvalidArgument, match=f"{name}=0"):
            calibrate(planted.dictionaries, atlas, **{name: 0})
    with pytest.raises(InvalidArgument, match="no null 'gumbel'"):
        calibrate(planted.dictionaries, atlas, null="gumbel")
    with pytest.raises(InvalidArgument, match="made by pearson"):
        calibrate(planted.dictionaries, replace(atlas, method="pearson"))
    few = {site: d for site, d in planted.dictionaries.items() if site.layer}
    with pytest.raises(UnknownSite, match="no dictionary at 0/"):
        calibrate(few, atlas, rows=5, rotations=1)


def test_rows_of_a_figure_are_a_pair_each(planted, atlas):
    made = calibrate(planted.dictionaries, atlas, rows=400, rotations=5)
    rows = calibration_rows(made, 0.05)
    assert len(rows) == len(atlas)
    cuts = made.cuts(0.05)
    for row in rows:
        child, parent = Site(row["layer"], Part.RES), Part(row["part"])
        other = next(p for p in child.predecessors if p.part is parent)
        pair = (child, other) if row["direction"] == "backward" else (other, child)
        best = made[pair].score[:, 0]
        assert row["threshold"] == pytest.approx(cuts[pair], abs=1e-4)
        assert row["kept"] == pytest.approx(np.mean(best >= cuts[pair]), abs=1e-4)
        assert row["kept plain"] == pytest.approx(np.mean(best >= (0.5 if parent is Part.RES else 0.15)), abs=1e-4)
    # where no chain has ended or not begun, what is kept is the planted chains
    assert max(row["kept"] for row in rows) == pytest.approx(len(planted.chains) / N_FEATURES, abs=0.03)
    json.dumps(rows, allow_nan=False)


# --- what is promised, on planted edges -----------------------------------------------------------------


def outcomes(setting, null, seeds=4):
    name = next(s for s in planted_edges.SETTINGS if s.name == setting)
    return [planted_edges.measure(planted_edges.plant(name, i), null, 0.01, i, (2048, 4)) for i in range(seeds)]


def test_moments_keep_the_rate_where_rows_share_directions_and_a_rotation_does_not():
    kept, broken = (outcomes("mean and strong directions", null) for null in ("moments", "rotation"))
    assert statistics.fmean(o.false for o in kept) < 0.03
    assert statistics.fmean(o.found for o in kept) > 0.35
    assert statistics.fmean(o.false for o in broken) > 0.2


def test_the_null_of_families_keeps_the_rate_where_features_come_in_families_and_moments_does_not():
    assert statistics.mean(one.false for one in outcomes("families of features", "moments")) > 0.2
    kept = outcomes("families of features", "families")
    assert statistics.mean(one.false for one in kept) < 0.01
    assert statistics.mean(one.found for one in kept) > 0.5


def test_moments_lose_little_where_rows_share_nothing():
    for null in ("moments", "rotation"):
        found = outcomes("isotropic", null, seeds=2)
        assert statistics.fmean(o.false for o in found) < 0.03
        assert statistics.fmean(o.found for o in found) > 0.9


def test_without_a_planted_edge_hardly_any_is_kept():
    assert statistics.fmean(o.false for o in outcomes("the same, none planted", "moments", seeds=3)) < 0.5


_CHILD = """
import sys, time
from pathlib import Path
from saeflow.matching import calibration
from saeflow.matching.atlas import open_atlas
from tests.matching.planted import plant

real = calibration.write_atomic
def slowly(path, data):
    time.sleep(0.05)
    real(path, data)
calibration.write_atomic = slowly
calibration.calibrate(plant().dictionaries, open_atlas(sys.argv[1]), rows=50, rotations=1)
"""


def test_a_killed_run_ends_with_the_same_bytes(planted, tmp_path):
    whole = build_atlas(planted.dictionaries, out=tmp_path / "whole", k=2)
    calibrate(planted.dictionaries, whole, rows=50, rotations=1)
    killed = build_atlas(planted.dictionaries, out=tmp_path / "killed", k=2).folder
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root / "src", root)))
    child = subprocess.Popen([sys.executable, "-c", _CHILD, killed], cwd=root, env=os.environ | {"PYTHONPATH": paths})
    give_up = time.monotonic() + 90
    while len(list(killed.glob("calibration.work/*.json"))) < 4 and child.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert open_atlas(killed).calibration is None
    calibrate(planted.dictionaries, open_atlas(killed), rows=50, rotations=1)
    for name in ("calibration.json", "atlas.json"):
        assert (killed / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (killed / "calibration.work").exists()


def test_a_manifest_cannot_name_nulls_outside_the_atlas(atlas):
    save_manifest(replace(atlas, calibration=("../other.json", "0")))
    with pytest.raises(CorruptAtlas, match="outside the atlas"):
        open_atlas(atlas.folder)
