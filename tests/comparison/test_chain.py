"""Birth, drift and death over a chain are those that were planted, and what is the same in all of a set."""

import numpy as np
import pytest
import torch

from saeflow.comparison.results import open_comparison
from saeflow.comparison.run import compare
from saeflow.comparison.settings import ComparisonSettings
from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.flow import FlowGraph
from saeflow.ids import FeatureId, Site

from ..matching.planted import dictionary
from .planted import SITE, noisy, unit

FEW = ComparisonSettings(rows=256, rotations=1, whole_rotations=0)
CARRIED, BORN, LOST = 20, 6, 4


@pytest.fixture(scope="module")
def steps():
    """20 features drift through four steps; from each step to the next 6 others are replaced, and 4 at the last."""
    stay, made = unit(CARRIED, 1), []
    other = unit(BORN, 2)
    for step in range(4):
        rows = torch.cat([stay, other])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))
        made.append((dictionary(SITE, rows[order]), order))
        stay, other = noisy(stay, 0.3, 10 + step), unit(BORN, 20 + step)
    return made


@pytest.fixture(scope="module")
def chain(steps):
    return compare(*(one for one, _ in steps), settings=FEW, names=("s0", "s1", "s2", "s3"))


def test_what_is_born_and_lost_at_each_step_is_counted(chain):
    rows = chain.table("compare_steps")
    assert rows["carried"].tolist()[1:] == [CARRIED] * 3
    assert rows["born"].tolist()[1:] == [BORN] * 3
    assert rows["lost"].tolist()[:-1] == [BORN] * 3
    assert rows["there"].tolist()[2] == pytest.approx(CARRIED / (CARRIED + BORN), abs=1e-5)
    assert np.isnan(rows["carried"].iloc[0])


def test_drift_is_the_angle_that_was_turned(steps, chain):
    (one, first), (other, second) = steps[0], steps[1]
    place = {int(row): at for at, row in enumerate(second.tolist())}
    kept = [(at, place[int(row)]) for at, row in enumerate(first.tolist()) if row < CARRIED]
    cosine = [float(one.W_dec[i] @ other.W_dec[j]) for i, j in kept]
    expected = np.degrees(np.arccos(cosine)).mean()
    assert chain.table("compare_steps")["drift"].iloc[1] == pytest.approx(expected, abs=1e-3)


def test_lineages_follow_features_back_to_where_they_were_born(steps, chain):
    rows = chain.table("lineages").set_index("feature")
    for at, row in enumerate(steps[3][1].tolist()):
        found = rows.loc[f"1/res/{at}"]
        assert found["born"] == (0 if row < CARRIED else 3)
        path = [int(word) for word in found["path"].split()]
        assert path[-1] == at
        if row < CARRIED:
            assert [int(steps[step][1][path[step]]) for step in range(4)] == [row] * 4


def test_the_graph_has_steps_in_place_of_layers_and_says_where_features_end(chain):
    graph = chain.graph
    assert graph is not None
    assert graph.steps == ("s0 1/res", "s1 1/res", "s2 1/res", "s3 1/res")
    assert graph.span == (0, 3)
    assert graph.layer_name(2) == "s2 1/res"
    assert {end.reason.value for end in graph.ends} == {"below threshold"}
    assert all(edge.score >= FEW.shared for edge in graph.edges)
    again = FlowGraph.from_json(graph.to_json())
    assert again.steps == graph.steps
    nodes = chain.table("compare_nodes")
    assert set(nodes["node"]) == {str(node.feature) for node in graph.nodes}


def test_consistent_features_are_those_in_all(chain):
    rows = chain.table("compare_presence")
    first = rows[rows["name"] == "s0 1/res"]
    assert first["share"].sum() == pytest.approx(1, abs=1e-4)
    # three noisy steps leave a cosine of about 0.89 with the first
    assert first["consistent"].iloc[-1] == pytest.approx(CARRIED / (CARRIED + BORN), abs=1e-4)
    matrix = chain.table("compare_matrix")
    known = {(row.a, row.b): row.pw_mcc for row in matrix.itertuples()}
    assert all(known[a, b] == known[b, a] for a, b in known)


def test_a_comparison_is_read_back_as_it_was_written(chain, tmp_path):
    page = chain.save(tmp_path)
    assert page.is_file()
    again = open_comparison(tmp_path)
    assert again.to_json() == chain.to_json()
    assert again.graph == chain.graph
    assert (tmp_path / "tables" / "compare_steps.csv").is_file()
    path = tmp_path / "comparison.json"
    path.write_text(path.read_text().replace('"pw_mcc"', '"pw_mcx"', 1))
    with pytest.raises(BadFile, match="checksum"):
        open_comparison(path)
    path.write_text('{"format": "saeflow-comparison", "version": 99}')
    with pytest.raises(BadFile, match="version"):
        open_comparison(path)
    with pytest.raises(BadFile, match="cannot be read as a comparison"):
        open_comparison(tmp_path / "nowhere")


def test_releases_are_paired_by_name_by_a_map_or_all_against_all():
    one = {Site(f"{layer}/res"): dictionary(Site(f"{layer}/res"), unit(12, layer)) for layer in range(3)}
    other = {Site(f"{layer}/res"): dictionary(Site(f"{layer}/res"), unit(12, 2 - layer)) for layer in range(1, 4)}
    found = compare(one, other, settings=FEW).to_pandas()
    assert list(zip(found["site a"], found["site b"], strict=True)) == [("1/res", "1/res"), ("2/res", "2/res")]
    mapped = compare(one, other, settings=FEW, mapping=[("0/res", "2/res"), ("2/res", "3/res")]).to_pandas()
    assert mapped["pw_mcc"].iloc[0] == pytest.approx(1, abs=1e-6)
    assert len(compare(one, other, settings=FEW, pairing="all").to_pandas()) == 9
    assert len(compare(one, other, settings=FEW, sites=["2/res"]).to_pandas()) == 1
    with pytest.raises(UnknownSite, match=r"no two sites.*0/res, 1/res, 2/res.*--map"):
        compare(one, {Site("9/mlp"): dictionary(Site("9/mlp"), unit(5, 1)), Site("8/mlp"): other[Site("1/res")]})
    with pytest.raises(InvalidArgument, match="a mapping pairs the sites of two"):
        compare(one, other, one, mapping=[("0/res", "1/res")])


def test_every_file_is_named_with_its_sha256(tmp_path):
    import hashlib

    from saeflow.sources.formats.saeflow_folder import save_release

    for name in ("one", "two"):
        save_release(tmp_path / name, {SITE: dictionary(SITE, unit(10, len(name)))}, name=name, model="tiny")
    found = compare(tmp_path / "one", tmp_path / "two", settings=FEW)
    for record in found.dictionaries:
        with open(record["file"], "rb") as file:
            assert record["sha256"] == hashlib.sha256(file.read()).hexdigest()
        assert record["model"] == "tiny"
        assert len(record["decoder sha256"]) == 64
    assert [record["name"] for record in found.dictionaries] == ["one 1/res", "two 1/res"]
    assert FeatureId.parse(found.table("features")["feature"][0]).site == SITE
