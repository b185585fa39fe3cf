"""Table 5 node by node: `saeflow reproduce gemma-2-2b --only table5` on planted weights in the shape of the release."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from saeflow.flow.graph import FlowGraph, Node
from saeflow.flow.published import compare, published_graph
from saeflow.ids import Part, Site
from saeflow.reproduce import graphs
from tests.flow.test_published import SEED, planted

RELEASE = "gemma-scope-2b"


class Release:
    """Planted dictionaries under the name of the release; refuses attention, which table 5 does not show."""

    def __init__(self, moved: dict[Site, int]) -> None:
        self.matches = planted(published_graph(RELEASE, SEED), moved=moved)

    def only(self, parts: Collection[Part]) -> object:
        assert set(parts) == {Part.RES, Part.MLP}
        return self.matches._dictionaries


@pytest.fixture
def accept(saeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the acceptance on a release whose features lie elsewhere at some sites; what it wrote."""
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(moved: dict[Site, int]) -> dict[str, object]:
        monkeypatch.setattr(graphs, "load_dictionaries", lambda name, device: Release(moved))
        code, out, err = saeflow("reproduce", "gemma-2-2b", "--only", "table5", "--out", "here", "--json")
        assert code == 0, err
        assert json.loads(out)["stages"][1]["made"] == ["table5"]
        return json.loads((tmp_path / "here" / "graphs" / "acceptance.json").read_bytes())

    return run


def test_weights_that_give_table_5_are_accepted_node_by_node(accept, tmp_path: Path):
    told = accept({})
    assert (told["seed"], told["agree"], told["of"]) == ("24/res/14548", 35, 35)
    assert all(row["same"] for row in told["rows"])
    rows = {(row["layer"], row["part"]): row for row in told["rows"]}
    assert (rows[7, "mlp"]["paper"], rows[7, "mlp"]["found"]) == (6110, 6110)
    assert rows[7, "mlp"]["score"] == pytest.approx(0.82, abs=1e-3)
    assert rows[24, "res"]["score"] is None  # the seed was found from nothing
    assert rows[25, "res"]["score"] == pytest.approx(0.7, abs=1e-3)
    pairs = {(pair["feature"], pair["part"]): pair for pair in told["pairs"]}
    assert len(pairs) == 4
    assert pairs["17/res/8130", "res"]["paper"] == 0.48
    assert pairs["17/res/8130", "res"]["found"] == pytest.approx(0.48, abs=1e-3)
    assert all(pair["same"] for pair in told["pairs"])
    assert (tmp_path / "here" / "graphs" / "24.res.14548.json").is_file()
    assert (tmp_path / "here" / "index.html").is_file()


def test_weights_that_do_not_are_told_apart_at_the_very_site(accept):
    told = accept({Site(10, Part.RES): 3, Site(7, Part.MLP): 9})
    assert (told["agree"], told["of"]) == (33, 35)
    wrong = {(row["layer"], row["part"]): (row["paper"], row["found"]) for row in told["rows"] if not row["same"]}
    assert wrong == {(10, "res"): (13754, 3), (7, "mlp"): (6110, 9)}
    assert [pair["same"] for pair in told["pairs"]] == [False, True, True, True]


def test_a_site_where_the_graph_has_nothing_holds_none():
    told = published_graph(RELEASE, SEED)
    grown = FlowGraph(SEED, (Node(SEED),), (), (), told.thresholds, None)
    rows = {(r["layer"], r["part"]): r for r in graphs.acceptance(compare(grown, told), grown)["rows"]}
    assert (rows[25, "res"]["paper"], rows[25, "res"]["found"], rows[25, "res"]["score"]) == (1646, None, None)
    assert sum(row["same"] for row in rows.values()) == 1
