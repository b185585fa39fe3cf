"""An atlas is used with the weights it was made from and with no others."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from saeflow.doctor.examine import examine
from saeflow.doctor.findings import CheckKind, Severity
from saeflow.errors import InvalidArgument, UnknownRelease
from saeflow.experiments.inputs import Inputs
from saeflow.experiments.settings import InputNames
from saeflow.ids import FeatureId, Site
from saeflow.matching.agreement import agreement
from saeflow.matching.atlas import atlas_folder, open_atlas, save_manifest
from saeflow.matching.build import build_atlas, other_weights, refuse_other_weights
from saeflow.sources.formats import save_release
from saeflow.sources.formats.file_weights import FileWeights
from saeflow.sources.library import load_dictionaries
from saeflow.steering.build import PlanRequest, build_plan
from saeflow.steering.plan import SteeringDirection

from .planted import dictionary, plant

SITE = Site.parse("2/res")


@pytest.fixture
def planted():
    return plant().dictionaries


@pytest.fixture
def atlas(planted, tmp_path):
    return build_atlas(planted, out=tmp_path / "atlas", k=2, release="planted")


@pytest.fixture
def retrained(planted):
    """The same but for one number of one site."""
    rows = planted[SITE].W_dec.clone()
    rows[5, 0] += 1e-3
    return {**planted, SITE: dictionary(SITE, rows)}


def test_the_digest_is_that_of_the_decoder_in_float32_whatever_holds_it(planted, tmp_path):
    rows = planted[SITE].W_dec
    expected = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
    save_release(tmp_path / "saes", planted, name="planted", model="", dtype=torch.float32)
    opened = load_dictionaries(tmp_path / "saes")[SITE]
    assert planted[SITE].digest() == opened.digest() == expected
    assert dictionary(SITE, rows.to(torch.float64)).digest() == expected


def test_the_digest_of_a_file_is_read_once_until_the_file_changes(planted, tmp_path, monkeypatch):
    save_release(tmp_path / "saes", planted, name="planted", model="")
    before = load_dictionaries(tmp_path / "saes")[SITE].digest()
    with monkeypatch.context() as patch:
        patch.setattr(FileWeights, "read", lambda *_: pytest.fail("read again"))
        assert load_dictionaries(tmp_path / "saes")[SITE].digest() == before
    shutil.rmtree(tmp_path / "saes")
    save_release(tmp_path / "saes", {**planted, SITE: dictionary(SITE, planted[SITE].W_dec + 1)}, name="p", model="")
    assert load_dictionaries(tmp_path / "saes")[SITE].digest() != before


@pytest.mark.parametrize("of_before", [False, True])
def test_other_weights_are_found_at_their_site_also_where_an_atlas_states_no_digest(
    planted, retrained, atlas, of_before
):
    if of_before:
        save_manifest(replace(atlas, weights={}))
        atlas = open_atlas(atlas.folder)
    refuse_other_weights(atlas, planted)
    assert other_weights(atlas, retrained) == [SITE]
    assert other_weights(atlas, retrained, [Site.parse("0/res")]) == []
    with pytest.raises(InvalidArgument, match=r"decoders differ at 2/res\. Build it again"):
        refuse_other_weights(atlas, retrained)


@pytest.mark.parametrize("method", ["pearson", "transport"])
def test_an_atlas_by_activations_without_digests_cannot_be_compared(planted, retrained, atlas, method):
    save_manifest(replace(atlas, weights={}, method=method))
    assert other_weights(open_atlas(atlas.folder), retrained) == []


def test_a_plan_an_agreement_and_the_doctor_ask_whose_weights_they_were(planted, retrained, atlas, tmp_path):
    request = PlanRequest(
        release="planted", direction=SteeringDirection.ACTIVATE, starts=(FeatureId(SITE, 3),), fold=True
    )
    with pytest.raises(InvalidArgument, match="decoders differ at 2/res"):
        build_plan(request, atlas=atlas, dictionaries=retrained)
    other = build_atlas(retrained, out=tmp_path / "other", k=1, method="permutation")
    with pytest.raises(InvalidArgument, match="matched from other weights at 2/res"):
        agreement({"cosine": atlas, "permutation": other})
    found = {
        name: [f.severity for f in examine(d, atlas=atlas, sites=[SITE]).findings if f.check is CheckKind.ATLAS]
        for name, d in {"same": planted, "other": retrained}.items()
    }
    assert found == {"same": [Severity.OK], "other": [Severity.WRONG]}


def test_experiments_refuse_an_atlas_of_other_weights_before_a_model_is_loaded(tmp_path, monkeypatch):
    dictionaries = load_dictionaries("demo")
    sites = [Site.parse("0/res"), Site.parse("1/res")]
    turned = {site: dictionary(site, dictionaries[site].W_dec.flip(0)) for site in sites}
    made = build_atlas(turned, out=tmp_path / "other", k=1)
    monkeypatch.setattr("saeflow.experiments.inputs.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InvalidArgument, match="decoders differ at 0/res, 1/res"):
        Inputs.open(InputNames("demo", atlas=str(made.folder)), first=1)


def test_the_atlas_of_a_folder_is_kept_under_what_is_in_it(planted, retrained, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    for place, held in ((one, planted), (two, retrained)):
        place.mkdir()
        save_release(place / "saes", held, name="saes", model="")
        monkeypatch.chdir(place)
        build_atlas(load_dictionaries("saes"), out=atlas_folder("saes"), k=1)
    found = {}
    for place in (one, two):  # one name, typed in two places
        monkeypatch.chdir(place)
        found[place] = open_atlas("saes")
        refuse_other_weights(found[place], load_dictionaries("saes"))
    assert found[one].folder != found[two].folder
    assert not np.array_equal(*(a[SITE, SITE.predecessors[0]].score for a in found.values()))
    (one / "saes").rename(tmp_path / "saes")
    assert open_atlas(tmp_path / "saes").folder == found[one].folder
    shutil.rmtree(two / "saes")  # trained again into the same folder
    save_release(two / "saes", {SITE: retrained[SITE]}, name="saes", model="")
    with pytest.raises(UnknownRelease):
        open_atlas(two / "saes")
