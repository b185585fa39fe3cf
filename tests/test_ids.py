"""Names of sites and features: what is printed is what is read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import saeflow as sf
from saeflow.errors import InvalidId
from saeflow.ids import FeatureId, Part, Site

sites = st.builds(Site, st.integers(0, 9999), st.sampled_from(Part))
features = st.builds(FeatureId, sites, st.integers(0, 999_999_999))


@given(sites)
def test_parse_and_print_of_a_site_are_inverse(site):
    assert Site.parse(str(site)) == site


@given(features)
def test_parse_and_print_of_a_feature_are_inverse(feature):
    assert FeatureId.parse(str(feature)) == feature


@given(st.lists(features))
def test_order_is_that_of_the_computation(found):
    for a, b in zip(sorted(found), sorted(found)[1:], strict=False):
        assert (a.layer, ("att", "mlp", "res").index(a.part), a.index) <= (
            b.layer,
            ("att", "mlp", "res").index(b.part),
            b.index,
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "24/res",
        "24/res/",
        "24/resid/1",
        "-1/res/1",
        "24/res/-1",
        "24/res/1.5",
        "024/res/1",
        " 24/res/1",
        "24/res/1/2",
        "24\\res\\1",
        "24/RES/1",
        "٢٤/res/1",
        "24/res/1\n",
        "99999/res/1",
        "24/res/9999999999",
    ],
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(InvalidId, match="24/res/14548"):
        FeatureId.parse(text)


def test_a_site_is_refused_with_an_example():
    with pytest.raises(InvalidId, match="'24/res'"):
        Site.parse("24/res/1")


def test_negative_numbers_are_refused():
    with pytest.raises(InvalidId, match="-1"):
        Site(-1, Part.RES)
    with pytest.raises(InvalidId, match="-2"):
        FeatureId(Site(0, Part.RES), -2)


def test_predecessors_are_those_of_section_3_3():
    assert [str(s) for s in Site.parse("24/res").predecessors] == ["23/res", "24/mlp", "24/att"]
    assert [str(s) for s in Site.parse("0/res").predecessors] == ["0/mlp", "0/att"]
    assert Site.parse("24/mlp").predecessors == ()
    assert str(Site.parse("24/mlp").successor) == "24/res"
    assert str(Site.parse("24/res").successor) == "25/res"


@given(features)
def test_a_name_is_taken_wherever_a_site_or_a_feature_is(feature):
    assert (
        FeatureId(str(feature)) == FeatureId(str(feature.site), feature.index) == FeatureId.of(str(feature)) == feature
    )
    assert (
        Site(str(feature.site)) == Site(feature.layer, str(feature.part)) == Site.of(str(feature.site)) == feature.site
    )
    assert FeatureId.of(feature) is feature
    assert type(Site(np.int64(3), "mlp").layer) is int


@pytest.mark.parametrize("wrong", [(4, "resid"), (4.0, "res"), ("4", "res"), (None, "res"), (4, None), (-1, "res")])
def test_what_is_no_site_is_refused_when_it_is_made(wrong):
    with pytest.raises(InvalidId, match=r"no site|negative"):
        Site(*wrong)


@pytest.mark.parametrize("wrong", [("4/res", None), ("4/res", 1.5), ("4/res", -1), ("4/resid", 3), (4, 3)])
def test_what_is_no_feature_is_refused_when_it_is_made(wrong):
    with pytest.raises(InvalidId):
        FeatureId(*wrong)


def test_dictionaries_atlases_and_graphs_take_names():
    atlas, dictionaries = sf.open_atlas("demo"), sf.load_dictionaries("demo")
    assert dictionaries["4/res"] is dictionaries[Site(4, Part.RES)]
    assert "4/res" in dictionaries
    assert "4/none" not in dictionaries
    assert atlas["4/res", "3/res"] is atlas[Site(4, Part.RES), Site(3, Part.RES)]
    assert sf.trace("4/res/72", atlas) == sf.trace(FeatureId.parse("4/res/72"), atlas)
    with pytest.raises(InvalidId, match="4/resid/72"):
        sf.trace("4/resid/72", atlas)


def test_a_flow_leads_to_a_residual_site_from_those_below_and_from_its_own_modules():
    every = [Site(layer, part) for layer in range(3) for part in Part]
    for site in every:
        found = [near for near in every if site.flows_from(near)]
        assert set(site.modules) <= set(site.predecessors) <= set(found)
        below = [near for near in every if near.part is Part.RES and near.layer < site.layer]
        assert found == (sorted([*below, *site.modules]) if site.part is Part.RES else [])
