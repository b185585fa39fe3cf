"""The questions about one text: the answers are those of the experiments, and slips are answered in a sentence."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

import saeflow as sf
from saeflow.errors import InvalidArgument, InvalidId, UnknownFeature, UnknownSite
from saeflow.experiments.one_text import DEACTIVATION_COLUMNS, ORIGIN_COLUMNS

TEXT, SAID = '"Hello," said Tom. "I am happy," she replied.', "4/res/72"


@pytest.fixture(scope="module")
def demo():
    return sf.load_model("demo"), sf.load_dictionaries("demo")


def test_each_removal_stands_beside_its_control_at_each_token_where_the_feature_fires(demo):
    found = sf.deactivate(*demo, TEXT, SAID)
    assert tuple(found.columns) == DEACTIVATION_COLUMNS
    assert set(found["token"].str.strip()) == {"said", "replied"}
    assert (found["before"] > 0).all()
    stream = found[found["removed"] == "RES"]
    assert (stream["after"] == 0).all()
    assert (stream["change"] == 1).all()
    assert (stream["after control"] > 0).all()
    for _, row in found.iterrows():
        removed, control = row["features"].split(), row["control"].split()
        assert not set(removed) & set(control)
        assert [name.rpartition("/")[0] for name in removed] == [name.rpartition("/")[0] for name in control]


def test_names_do_what_opened_things_do_and_a_token_is_looked_at_alone(demo):
    whole = sf.deactivate(*demo, TEXT, SAID)
    last = sf.deactivate("", "demo", TEXT, sf.FeatureId(SAID), token=int(whole["position"].max()))
    expected = whole[whole["position"] == whole["position"].max()].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, expected, rtol=1e-4)  # another batch, other last bits


def test_without_an_atlas_the_sites_around_the_feature_are_matched(demo):
    model, dictionaries = demo
    here = sf.deactivate(model, dict(dictionaries), TEXT, SAID)
    pd.testing.assert_frame_equal(here, sf.deactivate(*demo, TEXT, SAID), rtol=1e-4)


def test_origins_name_the_parts_that_are_removed(demo):
    groups = sf.origins(*demo, TEXT, layers=(4,))
    assert tuple(groups.columns) == ORIGIN_COLUMNS
    mine = groups[groups["feature"] == SAID].set_index("position")["group"]
    removed = sf.deactivate(*demo, TEXT, SAID).groupby("position")["removed"].last()
    assert mine.to_dict() == removed.to_dict()


@pytest.mark.parametrize(
    ("feature", "text", "more", "error", "said"),
    [
        ("4/mlp/3", TEXT, {}, InvalidArgument, "4/mlp/3 has no predecessors"),
        ("4/res/9999", TEXT, {}, UnknownFeature, "4/res has 768 features, 0 to 767"),
        ("9/res/1", TEXT, {}, UnknownSite, "no residual dictionary at layer 9"),
        ("4/rse/1", TEXT, {}, InvalidId, "'4/rse/1' is no feature"),
        (5, TEXT, {}, InvalidId, "no feature"),
        (SAID, "x", {}, InvalidArgument, "does not fire on this text"),
        (SAID, "", {}, InvalidArgument, "the text is empty"),
        (SAID, TEXT, {"token": 99}, InvalidArgument, "token 99 is not in the text, which has"),
        (SAID, TEXT, {"token": 1}, InvalidArgument, "does not fire on token 1"),
    ],
)
def test_what_cannot_be_answered_is_said(demo, feature, text, more, error, said):
    with pytest.raises(error, match=said):
        sf.deactivate(*demo, text, feature, **more)


def test_the_command_prints_what_the_call_returns(demo, saeflow):
    found = sf.deactivate(*demo, TEXT, SAID)
    code, out, err = saeflow("deactivate", "demo", SAID, "--text", TEXT, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["removals"] == found.to_dict("records")
    code, out, _ = saeflow("deactivate", "demo", SAID, "--text", TEXT)
    assert code == 0
    assert "RES & MLP" in out


def test_numbers_that_are_missing_are_no_numbers():
    [row] = sf.deactivate("demo", "demo", '"Hello," said Tom.', "4/res/277", token=3).to_dict("records")
    assert (row["removed"], row["control"]) == ("nowhere", "")
    assert math.isnan(row["after control"])
    assert math.isnan(row["change under control"])
