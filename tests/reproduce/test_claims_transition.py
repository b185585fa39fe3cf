"""Claims of appendices E and F on planted numbers: a match as a transcoder, and the graphs of Gemma Scope."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from saeflow.flow.graph import FlowGraph, Node
from saeflow.flow.scores import Scores, Thresholds
from saeflow.ids import FeatureId
from saeflow.paper.claims import claims
from saeflow.paper.evidence import Evidence, GraphsRun
from saeflow.paper.verdicts import FAILS, HOLDS, OPEN
from tests.reproduce.claim_worlds import mostly, transition

CLAIMS = {claim.id: claim for claim in claims()}
COSINE, PLAIN = "decoders/1/binary/RAW", "permutation/1/binary"
MAPS = {
    f"{COSINE}/RAW": 0.6,
    f"{COSINE}/FOLDED": 0.6,
    f"{PLAIN}/RAW/RAW": 0.5,
    f"{PLAIN}/RAW/FOLDED": 0.5,
    f"{PLAIN}/FOLDED/RAW": 0.5,
    "permutation-encoder/1/binary/RAW/RAW": 0.5,
    "permutation-encoder/1/binary/FOLDED/RAW": 0.5,
    "permutation-encoder-bias/1/binary/RAW/RAW": 0.3,
    "permutation-encoder-bias/1/binary/FOLDED/RAW": 0.3,
    "decoders/2/values/RAW/FOLDED": 0.5,
    "identity": 0.9,
}


def maps(**changed: float) -> dict[str, float]:
    """Explained variance, with some maps changed: `COSINE_RAW=0.4`."""
    names = {
        "cosine": f"{COSINE}/RAW",
        "cosine_folded": f"{COSINE}/FOLDED",
        "plain": f"{PLAIN}/RAW/RAW",
        "plain_folded": f"{PLAIN}/RAW/FOLDED",
        "found_folded": f"{PLAIN}/FOLDED/RAW",
        "bias_folded": "permutation-encoder-bias/1/binary/FOLDED/RAW",
        "top_2": "decoders/2/values/RAW/FOLDED",
    }
    return {**MAPS, **{names[name]: value for name, value in changed.items()}}


WORLDS: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {
    "fig23-cosine": (maps(), maps(cosine=0.2)),
    "fig23-use": (maps(cosine_folded=0.8, plain_folded=0.8), maps(cosine_folded=0.1, plain_folded=0.1)),
    "fig23-find": (maps(found_folded=0.51), maps(found_folded=0.2)),
    "fig23-bias": (maps(bias_folded=0.6), maps(bias_folded=0.31)),
    "fig24-top2": (maps(top_2=0.7), maps(top_2=-2.0)),
    "fig24-cosine": (maps(), maps(top_2=0.9)),
}


def outcome(name: str, worlds: list[Mapping[str, float]]) -> str:
    return CLAIMS[name].check(Evidence(transition=transition(worlds))).outcome


@pytest.mark.parametrize("name", WORLDS)
def test_a_claim_holds_fails_or_is_open_as_its_texts_are(name: str) -> None:
    true, false = WORLDS[name]
    assert outcome(name, mostly(true, false)) == HOLDS
    assert outcome(name, mostly(false, true)) == FAILS
    assert outcome(name, [true, false] * 4) == OPEN


def test_baselines_are_no_rivals_of_the_best_cosine() -> None:
    found = CLAIMS["fig24-cosine"].check(Evidence(transition=transition([maps()] * 2)))
    assert found.findings[0].found.value == pytest.approx(0.1)  # identity is at 0.9


# --- graphs -----------------------------------------------------------------------------------------------------------


def graph(seed: str, nodes: Mapping[str, tuple[float, float] | None]) -> FlowGraph:
    made = [
        Node(FeatureId.parse(name), None if told is None else Scores(told[0], told[1], None))
        for name, told in nodes.items()
    ]
    return FlowGraph(FeatureId.parse(seed), tuple(made), (), (), Thresholds(), (0, 25))


def accepted(agree: int = 33, m7: float | None = 0.818, r17: float | None = 0.482) -> dict[str, Any]:
    pairs = [
        ("7/res/16335", "mlp", m7),
        ("7/res/16335", "res", 0.304),
        ("17/res/8130", "mlp", 0.79),
        ("17/res/8130", "res", r17),
    ]
    told = [{"feature": f, "part": part, "found": found} for f, part, found in pairs]
    return {"agree": agree, "of": 33, "rows": [], "pairs": told}


SHOWS = {"17/res/9260": None, "18/res/2010": None}
GRAPHS: dict[str, tuple[GraphsRun, GraphsRun, GraphsRun]] = {
    "table5-nodes": (GraphsRun({}, accepted()), GraphsRun({}, accepted(agree=32)), GraphsRun()),
    "table5-7": (GraphsRun({}, accepted()), GraphsRun({}, accepted(m7=0.7)), GraphsRun({}, accepted(m7=None))),
    "table5-17": (GraphsRun({}, accepted()), GraphsRun({}, accepted(r17=0.49)), GraphsRun({}, accepted(r17=None))),
    "table5-between": (
        GraphsRun({"24/res/14548": graph("24/res/14548", {"9/res/1": (0.9, 0.2), "7/res/2": (0.3, 0.8)})}),
        GraphsRun({"24/res/14548": graph("24/res/14548", {"9/res/1": (0.3, 0.5), "10/res/2": (0.9, 0.1)})}),
        GraphsRun({"24/res/14548": graph("24/res/14548", {"9/res/1": None})}),
    ),
    "fig20-shows": (
        GraphsRun({"12/res/14455": graph("12/res/14455", SHOWS)}),
        GraphsRun({"12/res/14455": graph("12/res/14455", {"17/res/9260": None})}),
        GraphsRun({"12/res/1": graph("12/res/1", SHOWS)}),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_agree_differ_or_are_missing(name: str) -> None:
    outcomes = [CLAIMS[name].check(Evidence(graphs=run)).outcome for run in GRAPHS[name]]
    assert outcomes == [HOLDS, FAILS, OPEN]


def test_a_damaged_graph_is_no_graph_that_was_not_grown(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    (folder / "24.res.14548.json").write_text("{")
    damaged, missing = (CLAIMS[name].check(Evidence(tmp_path)) for name in ("table5-between", "fig20-shows"))
    assert (damaged.outcome, missing.outcome) == (OPEN, OPEN)
    assert damaged.why.startswith("24.res.14548.json cannot be read: ")
    assert missing.why.startswith("No graph was grown from 12/res/14455")


def test_every_claim_of_both_stages_is_planted() -> None:
    asked = {claim.id for claim in claims() if claim.stage in ("transition", "graphs")}
    assert asked == {*WORLDS, *GRAPHS}
