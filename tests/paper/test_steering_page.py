"""The page of a sweep: one choice of theme and direction for all of it, and texts side by side by seed."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from saeflow.experiments.results import SummaryTable
from saeflow.paper.results import write_page
from saeflow.paper.samples import passage, samples_html

from .sample_results import drawn, results_folder
from .sample_steering import THEMES, steering_tables
from .test_results_page import CHROMIUM, HOSTILE, NEEDS_BROWSER, Outline

TABLES = list(steering_tables(THEMES[:4], depth=3))
BY_NAME = {table.name: table for table in TABLES}
COLUMNS = BY_NAME["steering_samples"].columns


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page in which the last theme was activated only."""
    kept = [replace(t, rows=tuple(r for r in t.rows if r[:2] != (THEMES[3], "suppress"))) for t in TABLES]
    return drawn(results_folder(tmp_path_factory.mktemp("sweep") / "s", "steering", tables=kept))


def text(
    sample, method="none", prompt="I think", said=" so", layer=-1, value=0, marks=(2, 4), mirrors="", way="activate"
):
    return ("sea", way, method, layer, value, sample, *marks, prompt, said, mirrors)


def block(*rows, chosen=None):
    return samples_html(SummaryTable("steering_samples", "", "", "", COLUMNS, rows), chosen)


def said(html):
    return Outline(html).said()


# The page


def test_sections_come_in_the_order_of_the_paper_with_texts_and_cells_after(page):
    ids = [
        a["id"] for tag, a in Outline(page.read_text(encoding="utf-8")).tags if tag == "section" and a["id"] != "more"
    ]
    assert ids == [
        "t-steering_by_layer",
        "t-steering_by_value",
        "t-steering_features",
        "t-steering_best",
        "t-steering_paired",
        "t-steering_by_share",
        "t-steering_sensitivity",
        "t-steering_samples",
        "t-steering_cells",
    ]


def test_the_page_is_well_formed_and_loads_nothing(page):
    html = page.read_text(encoding="utf-8")
    outline = Outline(html)
    assert not re.search(r"https?:|//[a-z]+\.|@import|src=|<link|<iframe", html)
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert not [tag for tag, a in outline.tags if "style" in a or any(key.startswith("on") for key in a)]
    assert (page.parent / "figures" / "steering_by_layer-anger-activate.svg").is_file()


def test_the_head_names_themes_samples_and_units(page, tmp_path):
    manifest = json.loads((page.parent / "manifest.json").read_text())
    manifest["arguments"] = {"samples": 32, "confirm": 96}
    folder = tmp_path / "again"
    shutil.copytree(page.parent, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    summary = {
        "tables": {
            "steering_features": json.loads((folder / "summary.json").read_text())["tables"]["steering_features"]
        }
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    told = said(write_page(folder).read_text(encoding="utf-8"))
    assert "samples of a setting 32, 96 to confirm the best" in told
    assert "Steering along the flow: demo" in told
    assert "themes " in told
    assert "units done 3 of 3" in told


def test_every_plate_says_what_its_own_rows_say(page):
    html = page.read_text(encoding="utf-8")
    plates = re.findall(r'<div class="plate" data-of="([^"]*)" data-theme="([^"]*)" data-direction="([^"]*)">', html)
    assert len(plates) == 3 * 7  # by layer, by value, texts
    assert {f"{theme}, {way}" for _, theme, way in plates} == {of for of, _, _ in plates}
    assert html.count('<p class="reading">Highest scores over ') == 7


# Texts


def test_texts_of_a_seed_stand_in_a_row_with_their_marks(page):
    html = page.read_text(encoding="utf-8")
    (own,) = re.findall(
        r'data-of="anger, suppress"[^>]*><p class="of">[^<]*</p><table.*?</table>', html, flags=re.DOTALL
    )
    assert re.findall(r'class="role">([^<]*)<', own) == [
        "unsteered",
        "start alone",
        "best single layer",
        "best of many layers",
    ]
    assert own.count("<tr>") == 1 + 4
    assert own.count("<td>") == 4 * 4
    assert own.count('<span class="prompt">I think</span>') == 16
    table = BY_NAME["steering_samples"]
    found = [r for r in table.rows if r[:3] == ("anger", "suppress", "none") and r[5] == 2]
    for row in found:
        assert row[9].split("\n")[0].strip() in own


def test_marks_are_those_of_the_table_and_the_score_their_product():
    """Section 4.2: b c for activation, (1 - b) c for suppression, of marks divided by 5."""
    assert "topic 2.0 coherence 4.0 score 0.32" in said(block(text(0)))
    assert "topic 2.0 coherence 4.0 score 0.48" in said(block(text(0, way="suppress")))
    assert "topic – coherence 4.0 score –" in said(block(text(0, marks=(None, 4))))


def test_of_many_layers_the_method_that_was_confirmed_best_is_shown():
    rows = [
        text(0, "constant", said=" CONST", layer=2, value=4, marks=(5, 5)),
        text(0, "linear", said=" LIN", layer=1, value=8, marks=(0, 0)),
    ]
    assert "CONST" in block(*rows)
    columns = ("theme", "direction", "method", "layer", "value", "score", "low", "high")
    chosen = SummaryTable(
        "steering_best",
        "",
        "",
        "",
        columns,
        (("sea", "activate", "constant", 2, 4, 0.3, 0.2, 0.4), ("sea", "activate", "linear", 1, 8, 0.5, 0.4, 0.6)),
    )
    html = block(*rows, chosen=chosen)
    assert "LIN" in html
    assert "CONST" not in html
    assert "linear, layers to 1, s = 8 score 0.50 (0.40–0.60)" in said(html)


def test_the_single_layer_is_the_chosen_one_though_that_of_the_starts_came_out_higher():
    rows = [text(0, "single", said=" START", layer=1, value=4), text(0, "single", said=" CHOSEN", layer=2, value=4)]
    columns = ("theme", "direction", "method", "layer", "value", "score", "choice")
    chosen = SummaryTable(
        "steering_best",
        "",
        "",
        "",
        columns,
        (("sea", "activate", "single", 2, 4, 0.3, "best"), ("sea", "activate", "single", 1, 4, 0.5, "start layer")),
    )
    html = block(*rows, chosen=chosen)
    assert "CHOSEN" in html
    assert "START" not in html


def test_random_rows_and_other_settings_are_not_shown_for_a_method():
    rows = [
        text(0, "single", said=" START", layer=1, value=4, marks=(1, 5)),
        text(0, "single", said=" BEST", layer=2, value=4, marks=(5, 5)),
        text(0, "random", said=" RANDOM", value=4, mirrors="single"),
    ]
    html = block(*rows)
    assert "BEST" in html
    assert "START" not in html
    assert "RANDOM" not in html


def test_a_seed_without_a_text_is_a_gap_and_seeds_are_in_order():
    html = block(*(text(i, said=f" n{i}") for i in (10, 2)), text(2, "start", said=" only"))
    assert html.index("n2") < html.index("n10")
    assert html.count("<td>") == 4
    assert "–" in said(html)


@pytest.mark.parametrize(
    ("prompt", "text_", "shown"),
    [
        ("I think", " so", "I think</span> so"),
        ("I think", "I think so", "I think</span> so"),
        ("I think", "so", "I think</span> so"),
        ("I think ", "so", "I think </span>so"),
        ("", "so", "</span>so"),
        (None, None, "</span></p>"),
    ],
)
def test_the_prompt_is_told_from_the_text_once(prompt, text_, shown):
    assert shown in block(text(0, prompt=prompt, said=text_))


def test_line_breaks_stay_and_other_signs_of_control_are_shown():
    assert passage("a\r\n b\tc\u202e\x00\u00a0") == "a\n b⇥c⟨202E⟩␀⍽"


def test_texts_from_a_model_become_text(tmp_path):
    rows = (
        ("<b>", HOSTILE, HOSTILE, -1, 0, HOSTILE, 1, 1, HOSTILE, HOSTILE, ""),
        ("<b>", HOSTILE, "none", -1, 0, HOSTILE, 1, 1, HOSTILE, HOSTILE, ""),
    )
    tables = [SummaryTable("steering_samples", "T", "", "", COLUMNS, rows)]
    html = write_page(results_folder(tmp_path / "r", "steering", tables=tables)).read_text(encoding="utf-8")
    assert [tag for tag, _ in Outline(html).tags].count("script") == 1
    assert "<script>alert" not in html
    assert "\u202e" not in html


def test_a_table_of_texts_that_lacks_a_column_is_listed_with_the_rest(tmp_path):
    table = SummaryTable("steering_samples", "Texts", "", "", ("theme", "text"), (("sea", "so"),))
    html = write_page(results_folder(tmp_path / "r", "steering", tables=[table])).read_text(encoding="utf-8")
    assert html.index("More tables") < html.index('id="t-steering_samples"')
    assert 'class="samples' not in html


# In a browser

CLICKS = """
const wait = [];
const say = (name) => {
  const shown = Array.from(document.querySelectorAll(".plate:not([hidden])"), (p) => p.dataset.of);
  wait.push([name, shown, document.querySelectorAll(".none:not([hidden])").length]);
};
say("start");
const list = document.querySelector("#t-steering_by_value select");
list.value = "anger"; list.dispatchEvent(new Event("change"));
const buttons = Array.from(document.querySelectorAll("#t-steering_best .picker button"));
buttons.find((b) => b.textContent === "suppress").click();
say("picked");
list.value = "London"; list.dispatchEvent(new Event("change"));
say("missing");
document.documentElement.dataset.said = JSON.stringify(wait);
"""


@NEEDS_BROWSER
def test_one_choice_of_theme_and_direction_is_that_of_the_whole_page(page, tmp_path):
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    clicked = tmp_path / "clicked.html"
    clicked.write_text(html.replace("</body>", f"<script>{CLICKS}</script></body>"), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=4000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'user'}", clicked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    root = re.search(r"<html[^>]*>", done.stdout)[0]
    assert "data-error" not in root
    steps = {name: (shown, none) for name, shown, none in json.loads(_unescaped(root))}
    ways = ["steering_best", "steering_paired", "steering_by_share", "steering_sensitivity"]
    single = ["", *["{way}"] * len(ways)]  # features of all themes, then figures of a direction
    for name, of, way in (("start", THEMES[0], "activate"), ("picked", "anger", "suppress")):
        both = f"{of}, {way}"
        assert steps[name] == ([both, both, *(s.format(way=way) for s in single), both], 0)
    assert THEMES[3] == "London"
    assert steps["missing"] == ([s.format(way="suppress") for s in single], 3)


def _unescaped(root):
    return re.search(r'data-said="([^"]*)"', root)[1].replace("&quot;", '"')
