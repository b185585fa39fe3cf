"""A published site in a real browser: what it grows and draws is what a server answers, and nothing else is asked."""

import json
import random
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saeflow.matching.atlas import open_atlas
from saeflow.publishing.run import publish
from saeflow.web.requests import CompareQuery, FeatureQuery, GraphQuery, SearchQuery
from saeflow.web.routes_graph import compare, feature, graph, search
from saeflow.web.server import exploring

from .conftest import visiting

pytestmark = pytest.mark.filterwarnings("ignore:.*keep no match at fdr:saeflow.errors.SaeflowWarning")

ASK = """async asked => {
    const { answer } = await import("./static/site/source.js");
    return Promise.all(asked.map(([path, values]) => answer(path, values).catch(error => ({ error: error.message }))));
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def folder(own_cache, tmp_path_factory):
    place = tmp_path_factory.mktemp("published") / "site"
    publish("demo", place)
    return place


@pytest.fixture(scope="module")
def host(folder):
    """A server of plain files, as `python -m http.server` is one: without ranges, without types of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(browser, host):
    with visiting(browser, host) as opener:
        yield opener


@pytest.fixture(scope="module")
def explorer(own_cache):
    with exploring(open_atlas("demo")) as found:
        yield found


def some_features(explorer, n, seed):
    draw = random.Random(seed)  # noqa: S311 - a sample
    sites = list(explorer.sizes)
    return draw, [f"{site}/{draw.randrange(explorer.sizes[site])}" for site in draw.choices(sites, k=n)]


def plain(response, *without):
    """A response as JSON, without what may differ."""
    found = json.loads(response.model_dump_json())
    for name in ("took_ms", *without):
        found.pop(name, None)
    return found


def without_words(data):
    """A graph's data with the words that a site holds of a node: no passages, and the first tokens."""
    for node in data["nodes"]:
        if node["words"] is not None:
            node["words"] = {name: node["words"][name] for name in ("label", "tokens", "frequency")}
            node["words"]["tokens"] = node["words"]["tokens"][:6]
    return data


def growths(explorer, n):
    """Random features, each with thresholds, layers and the rest as somebody may set them."""
    draw, features = some_features(explorer, n, 5)
    for name in features:
        asked = {
            "feature": name,
            "k": draw.choice([1, 1, 2, 3, 5]),
            "direction": draw.choice(["both"] * 3 + ["backward", "forward"]),
        }
        if draw.random() < 0.3:
            asked["fdr"] = draw.choice([0.001, 0.01, 0.05, 0.1])
        else:
            low = 0.25 if asked["k"] > 1 else 0.0
            cuts = [round(draw.uniform(low, 0.9), 2) for _ in range(3)]
            asked |= dict(zip(("t_res", "t_mlp", "t_att"), cuts, strict=True)) | {
                "high": round(draw.uniform(0.2, 0.8), 2)
            }
        layer = int(name.partition("/")[0])
        if draw.random() < 0.4:
            asked["from_layer"] = draw.randint(0, layer)
        if draw.random() < 0.4:
            asked["to_layer"] = draw.randint(layer, 5)
        if draw.random() < 0.3:
            asked["expand"] = name
        yield asked


def test_every_graph_is_the_one_the_server_grows_and_draws(visit, explorer):
    asked = list(growths(explorer, 150))
    found = visit().evaluate(ASK, [["/api/graph", one] for one in asked])
    sizes = []
    for one, site in zip(asked, found, strict=True):
        server = plain(graph(explorer, GraphQuery(**one)))
        server["data"] = without_words(server["data"])
        site.pop("took_ms")
        assert site["data"] == server["data"], one
        assert site["svg"] == server["svg"], one
        assert site == server, one
        sizes.append(len(server["data"]["edges"]))
    assert max(sizes) > 60
    assert sum(n > 3 for n in sizes) > 75


def test_two_graphs_compared_are_those_of_the_server(visit, explorer):
    draw, features = some_features(explorer, 40, 6)
    asked = [
        {"a": a, "b": b, "k": draw.choice([1, 2]), "t_res": 0.3}
        for a, b in zip(features[::2], features[1::2], strict=True)
    ]
    found = visit().evaluate(ASK, [["/api/compare", one] for one in asked])
    for one, site in zip(asked, found, strict=True):
        server = plain(compare(explorer, CompareQuery(**one)))
        server["data"] = without_words(server["data"])
        site.pop("took_ms")
        assert site == server, one


def test_every_card_is_that_of_the_server(visit, explorer):
    _, features = some_features(explorer, 40, 7)
    asked = [{"id": name, **({"fdr": 0.01} if i % 3 else {"high": 0.4})} for i, name in enumerate(features)]
    found = visit().evaluate(ASK, [["/api/feature", one] for one in asked])
    for one, site in zip(asked, found, strict=True):
        site.pop("took_ms")
        assert site == plain(feature(explorer, FeatureQuery(**one))), one


@pytest.mark.parametrize("query", ["4/res/360", "5/mlp", "12", "767", "9/res/1", "5/res/99999"])
def test_ids_are_found_as_on_the_server(visit, explorer, query):
    (site,) = visit().evaluate(ASK, [["/api/search", {"q": query, "limit": 20}]])
    assert [hit["feature"] for hit in site["hits"]] == [
        hit.feature for hit in search(explorer, SearchQuery(q=query)).hits
    ]
