"""The report of a reproduction: the page of whole, partial and hostile folders, and the verdicts as data."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from saeflow.errors import BadFile
from saeflow.experiments.results import Results, RunRequest
from saeflow.flow.graph import Edge, FlowGraph, Node
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId
from saeflow.paper.claims import claims, items
from saeflow.reproduce.report import COLUMNS, write_report
from tests.paper.sample_results import deactivation_tables, origins_tables, results_folder
from tests.paper.test_results_page import Outline
from tests.reproduce.test_claims_transition import accepted, maps

HOSTILE = '</script><b onclick="x">\u202e"&\x00'


def stage(name: str, state: str = "done", why: str = "", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "folder": name,
        "items": [],
        "state": state,
        "why": why,
        "seconds": 12.0,
        "peak_mb": 800.0,
        **more,
    }


def record(out: Path, **changed: Any) -> Path:
    told = {
        "recipe": "demo",
        "title": "A small one",
        "note": "It stands in for another.",
        "release": "planted",
        "model": "none",
        "revisions": {"planted": "abc123"},
        "seed": 3,
        "versions": {"saeflow": "0.1.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": ""},
        "only": [],
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T04:04:05+00:00",
        "unanswered": {"fig19": "about another release; see `saeflow reproduce`"},
        "arguments": {"origins": {"texts": 3}},
        "stages": [stage("graphs"), stage("origins"), stage("deactivation", "partial", "killed"), stage("transition")],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "reproduction.json").write_text(json.dumps({**told, **changed}))
    return out


def with_transition(out: Path) -> None:
    """A stage with rows: texts in which the best cosine explains more than the permutation, by more in some."""
    request = RunRequest("transition", "planted", "none", 0, ("a",), {}, {})
    units = [{"dataset": "a", "text": number} for number in range(8)]
    results = Results.start(out / "transition", request, lambda: units, {})

    def row(unit: dict[str, Any]) -> dict[str, Any]:
        missed = {name: [(96.5 + unit["text"]) * (1 - ev)] for name, ev in maps().items()}
        return {**unit, "pair": "0/res > 1/res", "tokens": 9, "total": 100.0, "missed": missed}

    results.run(lambda unit: [row(unit)])


def with_graphs(out: Path) -> None:
    first, second = FeatureId.parse("0/res/1"), FeatureId.parse("1/res/2")
    graph = FlowGraph(
        second, (Node(first), Node(second)), (Edge(first, second, 0.8),), (), Thresholds(), (0, 1), "planted"
    )
    (out / "graphs").mkdir()
    (out / "graphs" / "1.res.2.json").write_text(graph.to_json())
    rows = [
        {"layer": 24, "part": "res", "paper": 14548, "found": 14548, "score": None, "same": True},
        {"layer": 7, "part": "mlp", "paper": 6110, "found": [1, 2], "score": 0.81, "same": False},
    ]
    (out / "graphs" / "acceptance.json").write_text(json.dumps({**accepted(agree=32), "rows": rows}))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = record(tmp_path_factory.mktemp("reproduction") / "out")
    few = [table for table in origins_tables(range(2), ["cosine"], ["fineweb"]) if table.name == "activity_differences"]
    results_folder(out / "origins", tables=few)
    (out / "origins" / "index.html").write_text("the stage's own page")
    table_1 = [t for t in deactivation_tables(range(1, 2)) if t.name == "table_1"]
    results_folder(out / "deactivation", experiment="deactivation", tables=table_1)
    with_transition(out)
    with_graphs(out)
    write_report(out)
    return out


@pytest.fixture(scope="module")
def page(out: Path) -> Outline:
    return Outline((out / "index.html").read_text(encoding="utf-8"))


def test_the_page_loads_nothing_and_lets_only_its_own_blocks_run(out: Path, page: Outline) -> None:
    text = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|<link|<iframe| src=| style=", text)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_every_item_has_its_place_and_every_claim_its_verdict_in_order(page: Outline) -> None:
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["summary", *(item.id for item in items().values()), "run"]
    listed = [a["id"] for tag, a in page.tags if tag == "li" and (a.get("id") or "").startswith("c-")]
    assert listed == [f"c-{claim.id}" for claim in claims()]
    rows = [a["data-outcome"] for tag, a in page.tags if tag == "tr" and "data-outcome" in a]
    assert len(rows) == len(claims())
    links = {a["href"] for tag, a in page.tags if tag == "a" and (a.get("href") or "").startswith("#")}
    there = {f"#{a['id']}" for _, a in page.tags if a.get("id")}
    assert links <= there


def test_figures_are_drawn_once_for_either_screen_and_lead_to_the_whole(page: Outline) -> None:
    drawn = [a.get("class") for tag, a in page.tags if tag == "svg" and a.get("class") == "plot"]
    assert len(drawn) == 2 * 2  # a table of origins, one of deactivation
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert {"origins/index.html", "origins/tables/activity_differences.csv"} <= links
    assert "deactivation/index.html" not in links
    assert sum(tag == "svg" and a.get("class") == "flow" for tag, a in page.tags) == 1


def test_what_was_not_run_says_why(page: Outline) -> None:
    said = page.said()
    assert "The stage deactivation is not finished: killed." in said
    assert "The stage steering is not part of this run. Nothing is drawn." in said
    assert "Not answered by this recipe: about another release; see saeflow reproduce ." in said
    assert "A drawing of the method: nothing to measure." in said


def test_the_head_and_the_record_say_what_was_run(page: Outline) -> None:
    said = page.said()
    for words in (
        "arXiv 2502.03032",
        "The paper on planted",
        "A small one",
        "a processor",
        "2026-01-02 03:04 UTC",
        "48 s",
        "800 MB",
        "abc123",
    ):
        assert words in said, words


def test_table_5_stands_site_by_site(page: Outline) -> None:
    said = page.said()
    assert "32 of 33 features agree." in said
    assert "7/mlp 6110 1, 2 0.810 differs" in said


def test_verdicts_are_written_as_data(out: Path) -> None:
    told = json.loads((out / "claims.json").read_text())
    by_id = {claim["id"]: claim for claim in told["claims"]}
    assert list(by_id) == [claim.id for claim in claims()]
    assert sum(told["counts"].values()) == len(by_id)
    cosine = by_id["fig23-cosine"]
    assert cosine["verdict"] == "holds"
    assert cosine["numbers"][0]["value"] == pytest.approx(0.1)
    assert cosine["numbers"][0]["decides"]
    assert by_id["table5-nodes"]["verdict"] == "does not hold"
    assert by_id["fig9-even"]["why"] == "The stage steering is not part of this run."
    rows = list(csv.DictReader(io.StringIO((out / "claims.csv").read_text())))
    assert [row["id"] for row in rows] == list(by_id)
    assert tuple(rows[0]) == COLUMNS
    assert {row["id"]: row["verdict"] for row in rows} == {name: claim["verdict"] for name, claim in by_id.items()}
    assert all(row["sentence"] for row in rows)


def test_a_folder_of_nothing_but_its_record_has_a_page(tmp_path: Path) -> None:
    stages = [stage("origins", "left out", "not asked for")]
    bare = record(tmp_path, stages=stages, finished=None, only=["table5"], unanswered={})
    said = Outline(write_report(bare).read_text(encoding="utf-8")).said()
    assert f"Of {len(claims())} claims 0 hold, 0 do not" in said
    assert "The run is not finished" in said
    assert "Only table5 was asked for." in said
    assert "The stage origins was left out: not asked for." in said


def test_words_of_the_record_become_text(tmp_path: Path) -> None:
    stages = [stage("origins", HOSTILE, HOSTILE), "no object"]
    changed = dict.fromkeys(("title", "note", "release", "model", "started"), HOSTILE)
    hostile = record(
        tmp_path, **changed, stages=stages, unanswered={"fig5": HOSTILE}, hardware={HOSTILE: HOSTILE}, only=[HOSTILE]
    )
    text = write_report(hostile).read_text(encoding="utf-8")
    assert "<b onclick" not in text
    assert text.count("</script>") == 1
    assert "\x00" not in text
    assert "\u202e" not in text


def test_a_damaged_stage_costs_its_own_claims_only(tmp_path: Path) -> None:
    broken = record(tmp_path)
    with_transition(broken)
    (broken / "origins").mkdir()
    (broken / "origins" / "manifest.json").write_text("{")
    (broken / "graphs").mkdir()
    (broken / "graphs" / "acceptance.json").write_text("[")
    write_report(broken)
    told = {c["id"]: c for c in json.loads((broken / "claims.json").read_text())["claims"]}
    assert told["fig23-cosine"]["verdict"] == "holds"
    assert "cannot be read" in told["fig5-res"]["why"]
    assert "cannot be read" in told["table5-nodes"]["why"]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_without_a_record_there_is_no_report(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "reproduction.json").write_text(text)
    with pytest.raises(BadFile, match="saeflow reproduce"):
        write_report(tmp_path)
