"""A published site in a real browser: what it grows and draws is what a server answers, and nothing else is asked."""

import gzip
import json
import random
import shutil
import statistics
import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saeflow.comparison.results import Comparison
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import SummaryTable
from saeflow.flow import FlowGraph
from saeflow.ids import Site
from saeflow.labels.search import words_in
from saeflow.labels.words import FeatureWords, WordsFolder, write_words
from saeflow.matching.atlas import open_atlas
from saeflow.publishing.run import publish
from saeflow.web.requests import CompareQuery, FeatureQuery, GraphQuery, SearchQuery
from saeflow.web.routes_graph import compare, feature, graph, search
from saeflow.web.server import exploring

from ..serving import until
from .conftest import NARROW, drawn, hash_of, visiting

pytestmark = pytest.mark.filterwarnings("ignore:.*keep no match at fdr:saeflow.errors.SaeflowWarning")

ASK = """async asked => {
    const { answer } = await import("./static/site/source.js");
    return Promise.all(asked.map(([path, values]) => answer(path, values).catch(error => ({ error: error.message }))));
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


HOSTILE = """<img src=x onerror="document.documentElement.dataset.error='hit'"> & 'x' </text>]]>"""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """The demo pack's atlas; the labels of a few features are none that anybody wants to see obeyed."""
    place = tmp_path_factory.mktemp("atlas") / "demo"
    shutil.copytree(open_atlas("demo").folder, place)
    site = Site("4/res")
    rows = WordsFolder(place / "words").site(site)
    for row in range(60):
        rows[row] = replace(rows[row] or FeatureWords(""), label=f"{row} {HOSTILE}")
    write_words(place / "words", site, rows)
    return place


COUNTERPART = ("mine 4/res", "other <b>", "4/res/360", "4/res/7", 0.81, 0.002, "4/res/9", 0.5, "related", HOSTILE)


@pytest.fixture(scope="module")
def folder(own_cache, atlas, tmp_path_factory):
    """The site, with two comparisons: of strangers, and of its own dictionary of layer 4."""
    compared = tmp_path_factory.mktemp("compared")
    settings = {"names": ["a <b>", "c"], "method": "cosine", "shared": 0.7, "null": "moments", "fdr": 0.01}
    of = {"name": "a <b>", "features": 3, "width": 2}
    pairs = SummaryTable.of("pairs", "Pairs", "none", "A note.", "a, b, pw_mcc", [("a <b>", HOSTILE, 0.5)])
    Comparison(settings, (of, of | {"name": "c"}), {"pairs": pairs}).save(compared / "strangers")
    columns = "of, in, feature, best, cosine, p, partner, partner cosine, kind, words of the best"
    features = SummaryTable.of("features", "Features", "none", "A note.", columns, [COUNTERPART])
    own = {"name": "mine 4/res", "site": "4/res", "decoder sha256": open_atlas(atlas).weights[Site("4/res")]}
    other = {"name": "other <b>", "site": "4/res", "decoder sha256": "another"}
    Comparison(settings, (of | own, of | other), {"pairs": pairs, "features": features}).save(compared / "own")
    place = tmp_path_factory.mktemp("published") / "site"
    publish("demo", place, atlas=atlas, comparisons=[compared / "strangers", compared / "own"])
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
def explorer(own_cache, atlas):
    with exploring(open_atlas(atlas), release="demo") as found:
        found.finder.build()
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
        if "error" in site:
            with pytest.raises(InvalidArgument, match=r"more than the 600|rows of match tables"):
                graph(explorer, GraphQuery(**one))
            continue
        server = plain(graph(explorer, GraphQuery(**one)))
        server["data"] = without_words(server["data"])
        site.pop("took_ms")
        assert site["data"] == server["data"], one
        assert site["svg"] == server["svg"], one
        assert site == server, one
        sizes.append(len(server["data"]["edges"]))
    assert max(sizes) > 60
    assert sum(n > 3 for n in sizes) > 60
    assert len(sizes) > 140


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


def test_words_are_found_and_ranked_as_on_the_server(visit, explorer):
    labels = [words_in(known.label) for site in explorer.sizes for known in explorer.words.site(site) if known]
    counts = Counter(word for label in labels for word in set(label))
    draw = random.Random(3)  # noqa: S311 - a sample
    rare = draw.sample(sorted(word for word, n in counts.items() if 2 <= n <= 60), 40)
    long = draw.sample([label for label in labels if len(label) > 2], 15)
    queries = [*rare, *(word[:4] for word in rare[:15] if len(word) > 4), *(" ".join(label[:2]) for label in long)]
    queries += ["th", "f", "4/res the", "zzzqq", "!!", "img onerror"]
    found = visit().evaluate(ASK, [["/api/search", {"q": query, "limit": 20}] for query in queries])
    same = sum(
        [hit["feature"] for hit in site["hits"]] == [str(hit.feature) for hit in explorer.finder.find(query, 20)]
        for query, site in zip(queries, found, strict=True)
    )
    # a server ranks 250 candidates with short labels, a site all of them: common words may differ
    assert same >= len(queries) - 3
    assert [hit["feature"] for hit in found[-1]["hits"]][:3] == ["4/res/0", "4/res/1", "4/res/2"]
    assert found[-3]["hits"] == []


def test_what_is_not_there_is_refused_in_words(visit):
    asked = [
        ["/api/graph", {"feature": "9/res/1"}],
        ["/api/graph", {"feature": "4/res/99999"}],
        ["/api/graph", {"feature": "<b>"}],
        ["/api/graph", {"feature": "4/res/1", "k": 9}],
        ["/api/graph", {"feature": "4/res/1", "t_res": 2}],
        ["/api/graph", {"feature": "4/res/1", "fdr": 0.02}],
        ["/api/graph", {"feature": "4/res/1", "from_layer": 5}],
        ["/api/graph", {"feature": "4/res/1", "t_res": -1, "t_mlp": -1, "t_att": -1, "k": 5}],
    ]
    found = visit().evaluate(ASK, asked)
    said = [
        "no dictionary at 9/res",
        "has 768 features",
        "no feature",
        "k = 9",
        "t_res = 2",
        "fdr = 0.02",
        "leave out",
        "more than",
    ]
    for words, answer in zip(said, found, strict=True):
        assert words in answer["error"], answer


def test_the_page_opens_with_a_graph_and_without_what_needs_a_model(visit, host):
    page = visit()
    page.wait_for_selector("#frame .node.seed")
    page.wait_for_selector("#panel h2")
    assert page.locator("#views a").all_inner_texts() == ["Flow", "Results"]
    assert page.locator("#steer, #text, [data-act=plan]").count() == 0
    page.keyboard.press("?")
    assert "steer" not in page.locator("#help").inner_text()
    page.keyboard.press("Escape")
    loaded = page.evaluate("performance.getEntriesByType('resource').map(file => file.name)")
    assert not [name for name in loaded if name.endswith(("steer.js", "plan.js", "text.js"))]
    page.goto(f"{host}#steer?feature=4/res/360")
    page.reload()
    page.wait_for_selector("#frame .node.seed")
    assert page.locator("#flow").is_visible()


def test_the_first_graph_needs_few_files_and_the_page_asks_for_them_early(visit, explorer):
    wanted = [name for name in some_features(explorer, 60, 8)[1] if "/res/" in name][:8]
    before = """new MutationObserver(() => {
        if (window.first || !document.querySelector("#frame .node")) return;
        window.first = performance.getEntriesByType("resource").map(file => [file.name, file.startTime]);
    }).observe(document, { childList: true, subtree: true });"""
    numbers = []
    for seed in wanted:
        page = visit()
        page.add_init_script(before)
        page.goto(f"{page.url.partition('#')[0]}?again#flow?feature={seed}")
        page.wait_for_selector("#frame .node.seed")
        loaded = {
            name.partition("?")[0].rpartition("/data/")[2]: start for name, start in page.evaluate("window.first")
        }
        data = [name for name in loaded if name.endswith(".bin")]
        assert not [name for name in data if "words-" in name]
        site = seed.rpartition("/")[0].replace("/", ".")
        assert {"nulls.bin", f"{site}/flows.bin"} < set(data)
        numbers.append(len(data))
    assert statistics.median(numbers) <= 4


def test_search_graph_card_and_link_as_in_the_explorer(visit, host):
    page = visit("#flow?feature=4/res/360&t_res=0.3&k=2&from=2")
    page.wait_for_selector('#frame .node.seed[data-id="4/res/360"]')
    assert min(int(name.partition("/")[0]) for name in drawn(page)) == 2
    page.fill("#search input", "4/res/123")
    page.wait_for_selector('#search li:has-text("4/res/123")')
    page.keyboard.press("Enter")
    page.wait_for_selector('#frame .node.seed[data-id="4/res/123"]')
    assert hash_of(page)[1]["t_res"] == "0.3"
    page.wait_for_selector('#panel .where .id:text("4/res/123")')
    before = len(drawn(page))
    page.locator("#panel [data-act=expand]").click()
    until(lambda: len(drawn(page)) > before)
    page.fill("#flow .compare input", "4/res/360")
    page.wait_for_selector('#flow .compare li:has-text("4/res/360")')
    page.keyboard.press("Enter")
    page.wait_for_selector("#frame svg.by-graph .side-letter", state="attached")
    link = page.url
    again = visit(link.removeprefix(host))
    again.wait_for_selector("#frame svg.by-graph .side-letter", state="attached")
    assert drawn(again) == drawn(page)


def test_the_graph_is_exported_as_a_file_that_saeflow_reads(visit, explorer):
    page = visit("#flow?feature=4/res/360&t_res=0.4")
    page.wait_for_selector("#frame .node.seed")
    page.locator(".menu summary").click()
    assert page.locator(".menu a b").all_inner_texts() == ["json", "svg"]
    with page.expect_download() as saved:
        page.locator('.menu a[data-format="json"]').click()
    text = saved.value.path().read_text(encoding="utf-8")
    assert FlowGraph.from_json(text) == FlowGraph.from_json(
        json.dumps(graph(explorer, GraphQuery(feature="4/res/360", t_res=0.4)).data)
    )
    assert saved.value.suggested_filename == "demo-4-res-360.json"


def test_a_card_shows_what_a_feature_corresponds_to_where_it_was_compared(visit):
    page = visit("#flow?feature=4/res/360")
    section = page.locator("#panel section", has_text="In other dictionaries")
    section.wait_for()
    said = section.inner_text()
    for part in ("other <b>: something related", "4/res/7", HOSTILE, "cosine 0.81, p 0.002", "4/res/9, cosine 0.50"):
        assert part in said
    section.locator("a").click()
    page.frame_locator("#results-frame").locator("h1").wait_for()
    assert hash_of(page)[1]["result"] == "2"
    assert "In other" not in visit("#flow?feature=4/res/361").locator("#panel:has(h2)").inner_text()


def test_labels_are_shown_and_never_obeyed(visit):
    page = visit("#flow?feature=4/res/3&t_res=0.2")
    page.wait_for_selector("#frame .node.seed")
    page.wait_for_selector("#panel h2")
    assert HOSTILE in page.locator("#panel h2").inner_text()
    page.fill("#search input", "onerror")
    page.wait_for_selector('#search li:has-text("<img src=x")')
    assert page.locator("img").count() == 0


def test_a_comparison_is_a_page_of_the_site(visit):
    page = visit("#results?result=1")
    frame = page.frame_locator("#results-frame")
    frame.locator("h1").wait_for()
    assert "a <b>" in frame.locator("h1").inner_text()
    assert frame.locator("img[src=x]").count() == 0
    page.locator("summary", has_text="tables").first.click()
    with page.expect_download() as saved:
        page.locator("#results .files a").first.click()
    assert saved.value.path().read_text().startswith("a,b,pw_mcc")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits(visit, scheme):
    page = visit("#flow?feature=4/res/360", viewport=NARROW, color_scheme=scheme)
    page.wait_for_selector("#frame .node.seed")
    page.wait_for_selector("#panel h2")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_damaged_block_is_told(visit, folder):
    blocks = gzip.decompress((folder / "data" / "4.res" / "flows.bin").read_bytes())
    place = folder / "data" / "flows" / f"{blocks[300] + 256 * blocks[768 + 300]}.bin"
    whole = place.read_bytes()
    place.write_bytes(whole[:-40])
    try:
        (said,) = visit().evaluate(ASK, [["/api/graph", {"feature": "4/res/300"}]])
    finally:
        place.write_bytes(whole)
    assert "damaged" in said["error"]
