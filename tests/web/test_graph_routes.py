"""What the API answers: the same as the library, in the shape the page is built on."""

import json
import xml.etree.ElementTree as ET

import networkx
import pytest

from saeflow.flow import FlowGraph, Thresholds, trace
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import words_for
from saeflow.labels.neuronpedia import Sources
from saeflow.labels.words import Context, FeatureWords
from saeflow.matching.atlas import open_atlas
from saeflow.report.exports import FORMATS, export
from saeflow.report.views import graph_data
from saeflow.web import limits
from saeflow.web.limits import LimitedAtlas, UnicodeWords
from saeflow.web.search import Finder, Picks

from .serving import get, refused, serving, until

SEED = FeatureId.parse("4/res/360")
FEW = {"t_res": 0.75, "t_mlp": 0.5, "t_att": 0.5}
"""Thresholds that leave a small graph: drawing a large one is slow under the checks of a test."""


@pytest.fixture(scope="module")
def atlas():
    return open_atlas("demo")


@pytest.fixture(scope="module")
def words(atlas):
    return words_for("demo", beside=atlas.folder)


@pytest.fixture(scope="module")
def served(own_cache):
    """With an index of words."""
    with serving(searching=True) as server:
        yield server


def ids(graph):
    return {node["feature"] for node in graph["nodes"]}


def test_info_says_what_is_explored(client, atlas):
    told = get(client, "/api/info")
    assert (told["release"], told["model"], told["k"], told["layers"]) == ("demo", atlas.model, 5, list(range(6)))
    sizes = {site["site"]: site["n_features"] for site in told["sites"]}
    assert sizes == {str(site): atlas[site, _target(atlas, site)].n_source for site in atlas.sites}
    assert all(site["words"] for site in told["sites"])
    assert told["defaults"] == {"t_res": 0.5, "t_mlp": 0.15, "t_att": 0.15, "high": 0.5, "k": 1}
    assert told["calibrated"] is True
    assert {"physics", "python"} <= {theme["name"] for theme in told["themes"]}
    for theme in told["themes"]:
        assert theme["description"]
        assert theme["starts"]
        assert [one["direction"] for one in theme["prompts"]] == theme["directions"]
    assert set(told["formats"]) == set(FORMATS)
    assert told["neuronpedia"] is False


def _target(atlas, site):
    return next(target for source, target in atlas if source == site)


def test_picks_are_told_once_they_are_found(served, client, monkeypatch, words):
    told = get(client, "/api/info")
    assert (told["picks"], told["picks_ready"]) == ([], False)
    found = Picks(served.explorer.atlas, words, served.explorer.sizes, most=12)
    found.look()
    monkeypatch.setattr(served.explorer, "picks", found)
    told = get(client, "/api/info")
    assert told["picks_ready"] is True
    assert 1 <= len(told["picks"]) <= 8
    for pick in told["picks"]:
        assert served.explorer.feature(pick["feature"]).layer >= 4
        assert pick["label"] == words.get(FeatureId.parse(pick["feature"])).label
        assert "layer" in pick["why"]


def test_the_graph_is_that_of_the_library(client, atlas, words):
    told = get(client, "/api/graph", feature=str(SEED))
    expected = trace(SEED, atlas, thresholds=Thresholds(mlp=0.15, att=0.15))
    assert told["data"] == json.loads(json.dumps(graph_data(expected, words)))
    assert FlowGraph.from_json(json.dumps(told["data"])) == expected
    assert sum(told["counts"][part] for part in ("res", "mlp", "att")) == len(expected.nodes)
    assert told["counts"]["edges"] == len(expected.edges)
    assert told["groups"] is None


def test_the_drawing_shows_every_node_and_is_well_formed(client):
    told = get(client, "/api/graph", feature=str(SEED), k=2, **FEW)
    root = ET.fromstring(told["svg"])  # noqa: S314 - our own
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    drawn = {g.get("data-id") for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("data-id")}
    assert drawn == ids(told["data"])
    assert "<style" not in told["svg"]
    assert "<script" not in told["svg"]


def test_thresholds_k_and_direction_are_those_asked_for(client, atlas):
    asked = {"t_res": 0.6, "t_mlp": 0.5, "t_att": 0.4, "high": 0.6, "k": 2}
    told = get(client, "/api/graph", feature=str(SEED), direction="backward", **asked)
    cuts = Thresholds(res=0.6, mlp=0.5, att=0.4, high=0.6)
    expected = trace(SEED, atlas, thresholds=cuts, k=2, forward=False)
    assert FlowGraph.from_json(json.dumps(told["data"])) == expected


def test_calibrated_thresholds_are_those_of_the_atlas_and_exclude_plain_ones(client, atlas):
    told = get(client, "/api/graph", feature=str(SEED), fdr=0.01)
    expected = trace(SEED, atlas, thresholds=Thresholds.calibrated(atlas, 0.01))
    assert FlowGraph.from_json(json.dumps(told["data"])) == expected
    assert told["data"]["thresholds"]["fdr"] == 0.01
    assert "t_res" in refused(client, "/api/graph", feature=str(SEED), fdr=0.01, t_res=0.5)
    for fdr in (0, 1, -1, "nan", "inf"):
        refused(client, "/api/graph", feature=str(SEED), fdr=fdr)


def test_layers_can_be_left_out_but_not_the_seed(client):
    told = get(client, "/api/graph", feature=str(SEED), from_layer=3, to_layer=4)
    assert {name.split("/")[0] for name in ids(told["data"])} == {"3", "4"}
    assert "leave out the seed" in refused(client, "/api/graph", feature=str(SEED), to_layer=3)


def test_expanding_a_node_adds_its_best_matches(client, atlas):
    plain = get(client, "/api/graph", feature=str(SEED), **FEW)["data"]
    wide = get(client, "/api/graph", feature=str(SEED), expand=str(SEED), **FEW)["data"]
    best = {str(match.feature) for match in atlas.best(SEED, Site(3, Part.RES), 3)}
    assert ids(plain) < ids(wide)
    assert best <= ids(wide)
    assert "cannot be expanded" in refused(client, "/api/graph", feature=str(SEED), expand="0/res/1")
    refused(client, "/api/graph", feature=str(SEED), expand="0/res/1,")
    refused(client, "/api/graph", feature=str(SEED), expand=",".join(["4/res/360"] * 65))


def test_more_matches_than_the_atlas_keeps_are_refused_with_the_number_it_keeps(client):
    assert "keeps 5" in refused(client, "/api/graph", feature=str(SEED), k=6)
    refused(client, "/api/graph", feature=str(SEED), k=0)


def test_a_graph_too_large_to_read_is_refused_with_the_way_out(client, atlas, monkeypatch):
    monkeypatch.setattr(limits, "MOST_LOOKUPS", 1_000)
    said = refused(client, "/api/graph", feature=str(SEED), t_res=-1, t_mlp=-1, t_att=-1, k=5)
    assert "Raise the thresholds" in said
    with pytest.raises(Exception, match="more than 10 rows"):
        trace(SEED, LimitedAtlas(atlas, 10))
    assert trace(SEED, LimitedAtlas(atlas)) == trace(SEED, atlas)


def test_comparing_tells_what_is_in_which(client):
    one, other = "4/res/360", "5/res/194"
    told = get(client, "/api/compare", a=one, b=other, **FEW)
    graphs = [get(client, "/api/graph", feature=name, **FEW)["data"] for name in (one, other)]
    mine, theirs = map(ids, graphs)
    assert ids(told["data"]) == mine | theirs
    assert set(told["in_a"]) == mine - theirs
    assert set(told["in_b"]) == theirs - mine
    assert set(told["both"]) == mine & theirs
    edges = [{(e["parent"], e["child"]) for e in graph["edges"]} for graph in graphs]
    whole = [(e["parent"], e["child"]) for e in told["data"]["edges"]]
    assert told["edges_in"] == [
        "ab" if pair in edges[0] & edges[1] else "a" if pair in edges[0] else "b" for pair in whole
    ]
    assert (told["edges_a"], told["edges_b"], told["edges_both"]) == tuple(
        told["edges_in"].count(side) for side in ("a", "b", "ab")
    )
    same = get(client, "/api/compare", a=one, b=one, **FEW)
    assert same["in_a"] == same["in_b"] == []
    assert set(same["edges_in"]) == {"ab"}


def test_search_finds_words_as_one_types(client):
    until(lambda: get(client, "/api/search", q="x")["indexing"] is None, 60)
    for query in ("forc", "force"):
        hits = get(client, "/api/search", q=query)["hits"]
        assert hits
        assert all(any(w.strip().lower().startswith("forc") for w in _said(hit)) for hit in hits)
    assert get(client, "/api/search", q="")["hits"] == []
    assert len(get(client, "/api/search", q="the", limit=3)["hits"]) == 3
    at = get(client, "/api/search", q="force", site="3/res")["hits"]
    assert {hit["feature"].rpartition("/")[0] for hit in at} == {"3/res"}
    assert get(client, "/api/search", q="3/res force")["hits"] == at


def test_words_that_cannot_be_indexed_are_told_and_ids_are_still_found(served, client, tmp_path, monkeypatch):
    (tmp_path / "3.res.jsonl.gz").write_bytes(b"no words")
    finder = Finder(tmp_path, served.explorer.words, served.explorer.sizes)
    finder.build()
    monkeypatch.setattr(served.explorer, "finder", finder)
    told = get(client, "/api/search", q="force")
    assert (told["hits"], told["indexing"]) == ([], None)
    assert "3.res.jsonl.gz" in told["problem"]
    assert get(client, "/api/search", q="4/res/360")["hits"]


def _said(hit):
    return [*hit["label"].replace(",", " ").split(), *hit["tokens"]]


@pytest.mark.parametrize(
    "query", ['"', "' OR 1=1 --", "* AND NOT", "a" * 200, "\x00", "💥", "4/res/", "-", "NEAR(a b)", "ﬁ", "%"]
)
def test_whatever_is_typed_is_searched_for(client, query):
    get(client, "/api/search", q=query)


def test_an_id_is_found_before_words(client):
    hit = get(client, "/api/search", q="4/res/360")["hits"][0]
    assert hit["feature"] == "4/res/360"
    assert hit["label"]
    rows = [one["feature"] for one in get(client, "/api/search", q="700", limit=50)["hits"]]
    assert rows[:6] == [f"{layer}/res/700" for layer in range(6)]
    assert all(name.endswith("/700") or "att" not in name for name in rows[:10])
    at = [one["feature"] for one in get(client, "/api/search", q="2/att", limit=3)["hits"]]
    assert at == ["2/att/0", "2/att/1", "2/att/2"]
    assert get(client, "/api/search", q="4/res/99999")["hits"] == []


def test_the_card_tells_all_that_is_known(client, atlas, words):
    told = get(client, "/api/feature", id=str(SEED))
    known = words.get(SEED)
    assert (told["label"], told["tokens"], told["promotes"]) == (known.label, list(known.tokens), list(known.promotes))
    assert [c["values"] for c in told["contexts"]] == [list(c.values) for c in known.contexts]
    node = trace(SEED, atlas).by_feature[SEED]
    assert told["scores"] == {"res": node.scores.res, "mlp": node.scores.mlp, "att": node.scores.att}
    assert told["p"] == {"res": node.p.res, "mlp": node.p.mlp, "att": node.p.att}
    assert told["evolution"]["case"] == node.evolution.case
    for part, site in (("res", "3/res"), ("mlp", "4/mlp"), ("att", "4/att")):
        expected = atlas.best(SEED, Site.parse(site))
        assert [(n["feature"], n["score"]) for n in told["predecessors"][part]] == [
            (str(match.feature), match.score) for match in expected
        ]
        assert told["predecessors"][part][0]["label"] == words.get(expected[0].feature).label
    assert [n["feature"] for n in told["successors"]["res"]] == [
        str(match.feature) for match in atlas.best(SEED, Site(5, Part.RES))
    ]
    assert told["groups"] is None
    assert told["links"] == []


def test_the_case_follows_the_line_that_is_asked_for(client):
    cases = {high: get(client, "/api/feature", id=str(SEED), high=high)["evolution"]["case"] for high in (0.01, 0.999)}
    assert cases == {0.01: "B", 0.999: "D"}
    assert get(client, "/api/feature", id=str(SEED), fdr=0.01)["evolution"]["case"] in "ABCD"


def test_a_feature_of_a_module_has_successors_alone(client):
    told = get(client, "/api/feature", id="4/mlp/3")
    assert told["scores"] is told["evolution"] is None
    assert told["predecessors"] == {}
    assert len(told["successors"]["res"]) == 5


def test_the_first_and_last_layer_have_what_there_is(client):
    assert set(get(client, "/api/feature", id="0/res/1")["predecessors"]) == {"mlp", "att"}
    assert get(client, "/api/feature", id="5/res/1")["successors"] == {}


def test_a_link_leads_to_the_page_of_the_feature(served, client, monkeypatch):
    sources = Sources("gemma-2-2b", {Site(4, Part.RES): "4-gemmascope-res-16k"})
    monkeypatch.setattr(served.explorer, "sources", sources)
    links = get(client, "/api/feature", id=str(SEED))["links"]
    assert links == [{"title": "Neuronpedia", "url": "https://www.neuronpedia.org/gemma-2-2b/4-gemmascope-res-16k/360"}]
    assert get(client, "/api/feature", id="3/res/1")["links"] == []
    assert get(client, "/api/info")["neuronpedia"] is True


@pytest.mark.parametrize("name", list(FORMATS))
def test_exports_are_the_files_of_the_library(client, atlas, words, name):
    found = client.get("/api/export", params={"feature": str(SEED), "format": name, **FEW})
    assert found.status_code == 200
    assert found.headers["content-type"].partition(";")[0] == FORMATS[name].media_type.partition(";")[0]
    assert found.headers["content-disposition"] == f'attachment; filename="demo-4-res-360{FORMATS[name].suffix}"'
    graph = trace(SEED, atlas, thresholds=Thresholds(res=0.75, mlp=0.5, att=0.5))
    assert found.content == export(graph, name, words)
    if name == "graphml":
        assert len(networkx.parse_graphml(found.text)) == len(graph.nodes)


def test_an_unknown_format_is_refused(client):
    refused(client, "/api/export", feature=str(SEED), format="pickle")


def test_text_without_utf_8_is_sent_with_a_mark_in_its_place():
    class Torn:
        def get(self, feature):
            context = Context(("a", "\ud83d"), (0.0, 1.0), "x")
            return FeatureWords("half \ud83d", ("\udc00",), ("ok",), (context,))

        def site(self, site):
            return [None, self.get(FeatureId(site, 1))]

    mended = UnicodeWords(Torn()).get(SEED)
    assert mended == FeatureWords("half ?", ("?",), ("ok",), (Context(("a", "?"), (0.0, 1.0), "x"),))
    assert UnicodeWords(Torn()).site(SEED.site) == [None, mended]


def test_the_page_and_its_files_are_sent_with_their_kinds(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert " onclick=" not in page.text
    script = client.get("/static/report/card.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert client.get("/static/report/figure.css").headers["content-type"].startswith("text/css")
    assert client.get("/static/nothing.js").status_code == 404
