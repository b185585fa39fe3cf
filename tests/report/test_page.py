"""The HTML page: one file that loads nothing, lets nothing in, and works in a browser."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from saeflow.labels.words import Context, FeatureWords
from saeflow.report import render

from .report_graphs import GRAPHS, HOSTILE, KnownWords, words_for

EVERY_GRAPH = pytest.mark.parametrize("name", GRAPHS)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine's PATH")


class Outline(HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def hostile_words(graph) -> KnownWords:
    context = Context((HOSTILE, " x"), (1.0, 0.0), HOSTILE)
    return KnownWords({n.feature: FeatureWords(HOSTILE, (HOSTILE,), (HOSTILE,), (context,)) for n in graph.nodes})


@EVERY_GRAPH
def test_the_page_names_no_other_place(name):
    text = render(GRAPHS[name], "html", words_for(GRAPHS[name]))
    without_namespace = text.replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|src=|<link|<iframe", without_namespace)
    assert {a.get("href") for tag, a in Outline(text).tags if "href" in a} <= {"#flow"}


@EVERY_GRAPH
def test_the_page_embeds_every_node_with_its_words(name):
    graph = GRAPHS[name]
    outline = Outline(render(graph, "html", words_for(graph)))
    data = json.loads(outline.scripts[0])
    assert data == json.loads(render(graph, "json", words_for(graph)))
    drawn = [a["data-id"] for tag, a in outline.tags if tag == "g" and "node" in (a.get("class") or "").split()]
    assert drawn == [str(n.feature) for n in graph.nodes]
    linked = {a["data-feature"] for tag, a in outline.tags if tag == "a"}
    assert {str(n.feature) for n in graph.nodes} <= linked


def test_hostile_words_become_neither_tags_nor_scripts():
    graph = GRAPHS["branching"]
    plain, hostile = (Outline(render(graph, "html", w)) for w in (words_for(graph), hostile_words(graph)))
    assert not [tag for tag, _ in hostile.tags if tag == "img"]
    assert len(hostile.scripts) == len(plain.scripts) == 2
    assert not [a for _, a in hostile.tags if any(key.startswith("on") for key in a)]
    assert json.loads(hostile.scripts[0])["nodes"][0]["words"]["label"] == HOSTILE


def test_the_policy_lets_only_the_two_inlined_blocks_run():
    outline = Outline(render(GRAPHS["six"], "html"))
    policy = next(a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert not [tag for tag, a in outline.tags if "style" in a]


def test_our_own_code_weighs_less_than_100_kilobytes():
    static = files("saeflow.report") / "static"
    assert sum(len(file.read_bytes()) for file in static.iterdir()) < 100_000


def test_a_report_opens_without_torch():
    code = (
        "import sys, saeflow.report, saeflow.ids as i, saeflow.flow.graph as g, saeflow.flow.scores as s\n"
        "f = i.FeatureId.parse('1/res/2')\n"
        "graph = g.FlowGraph(f, (g.Node(f),), (), (), s.Thresholds(), None)\n"
        "[saeflow.report.render(graph, to) for to in ('text', 'html', 'json', 'svg')]\n"
        "print(sorted({'torch', 'transformers', 'networkx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The page's document after its scripts have run, and what the console said."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr "
        "--virtual-time-budget=4000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@NEEDS_BROWSER
@pytest.mark.parametrize("name", ["six", "branching", "deep", "module", "alone"])
def test_a_browser_draws_every_node_without_an_error(name, tmp_path):
    graph = GRAPHS[name]
    page = tmp_path / "page.html"
    page.write_text(render(graph, "html", words_for(graph)), encoding="utf-8")
    document, console = browse(page, tmp_path / "profile")
    root = Outline(document).tags[0][1]
    assert console == ""
    assert "data-error" not in root
    assert root["data-drawn"] == str(len(graph.nodes))


@NEEDS_BROWSER
def test_a_browser_runs_nothing_that_a_label_says(tmp_path):
    graph = GRAPHS["six"]
    page = tmp_path / "page.html"
    page.write_text(render(graph, "html", hostile_words(graph)), encoding="utf-8")
    document, console = browse(page, tmp_path / "profile")
    outline = Outline(document)
    assert console == ""
    assert outline.tags[0][1]["data-drawn"] == str(len(graph.nodes))
    assert "img" not in {tag for tag, _ in outline.tags}
    assert f"<title>Feature flow of {graph.seed}</title>" in document


# What a reader does, played by a script; the page's policy is taken out so that the script may run.
_PLAY = """
const says = {};
const node = (id) => document.querySelector(`.node[data-id="${id}"]`);
const key = (at, name) => at.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
node(SEED).dispatchEvent(new MouseEvent("click", { bubbles: true }));
says.on = Array.from(document.querySelectorAll(".node.on"), (g) => g.dataset.id).sort();
says.card = document.querySelector(".card").textContent;
says.pinned = !document.querySelector(".card").hidden;
key(document.body, "Escape");
says.after = document.querySelectorAll(".node.on").length;
says.hidden = document.querySelector(".card").hidden;
node(SEED).focus();
key(document.activeElement, "ArrowLeft");
says.left = document.activeElement.dataset.id;
key(document.activeElement, "ArrowRight");
says.right = document.activeElement.dataset.id;
key(document.activeElement, "ArrowUp");
says.up = document.activeElement.dataset.id;
const width = () => Number(document.querySelector("svg.flow").getAttribute("width"));
const before = width();
document.querySelector('[aria-label="Zoom in"]').click();
says.grew = width() > before;
document.querySelector('[aria-label="Fit the whole graph"]').click();
says.fits = width() <= document.querySelector(".frame").clientWidth + 1;
document.documentElement.dataset.says = JSON.stringify(says);
"""


@NEEDS_BROWSER
def test_clicking_follows_a_path_and_keys_move_along_edges(tmp_path):
    graph = GRAPHS["deep"]
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(graph, "html", words_for(graph)))
    script = f"<script>{{ const SEED = {json.dumps(str(graph.seed))}; {_PLAY} }}</script></body>"
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", script), encoding="utf-8")
    document, console = browse(page, tmp_path / "profile")
    assert console == ""
    says = json.loads(Outline(document).tags[0][1]["data-says"])
    path = {graph.seed}
    for step in (lambda f: [e.parent for e in graph.parents(f)], lambda f: [e.child for e in graph.children(f)]):
        front = [graph.seed]
        while front:
            front = [g for f in front for g in step(f)]
            path |= set(front)
    assert says["on"] == sorted(map(str, path))
    assert says["pinned"]
    assert str(graph.seed) in says["card"]
    assert (says["after"], says["hidden"]) == (0, True)
    residual = [e.parent for e in graph.parents(graph.seed) if e.parent.part == "res"]
    assert says["left"] == str(residual[0])
    assert says["right"] == str(graph.seed)
    assert says["up"] == str(graph.seed)  # this layer has no mlp feature above it
    assert says["grew"]
    assert says["fits"]
