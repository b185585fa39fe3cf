"""Whoever reads the page: contrast in light and dark, names of controls, focus, small windows, no motion, colours."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from saeflow.paper.style import COLOURS, DARK

from .conftest import NARROW, WIDE, drawn

FORCE = "3/res/541"
VIEWS = {
    "flow": f"#flow?feature={FORCE}&node={FORCE}&t_res=0.3",
    "compare": f"#flow?feature={FORCE}&node={FORCE}&b=3/res/450",
    "steer": f"#steer?feature={FORCE}&theme=physics",
    "text": f"#text?feature={FORCE}",
    "results": f"#results?feature={FORCE}",
}

HERE = Path(__file__).parent
_CONTRAST = (HERE / "contrast.js").read_text(encoding="utf-8")
_NAMES = (HERE / "names.js").read_text(encoding="utf-8")
_FOCUS = """() => {
  const at = document.activeElement;
  const shown = getComputedStyle(at.matches("[type=radio]") ? at.nextElementSibling : at);
  const ringed = at.matches(".node")
    ? Number.parseFloat(getComputedStyle(at.querySelector(".box")).strokeWidth) >= 3
    : shown.outlineStyle !== "none" && Number.parseFloat(shown.outlineWidth) >= 2;
  const box = at.getBoundingClientRect();
  const within = at.closest("aside, form, figure, header.masthead") ?? at;
  return [within.id || within.className, ringed, box.bottom > 0 && box.top < innerHeight, at.dataset.id ?? ""];
}"""
_OUTSIDE = """() => Array.from(document.querySelectorAll("button, input, select, textarea, a[href]"))
  .filter((e) => e.checkVisibility() && !e.closest(".frame, .grid-frame, .scroll, .unseen, .skip"))
  .filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > innerWidth);
  })
  .map((e) => e.outerHTML.slice(0, 80))"""

_CUT_OFF = """() => {
  const { left, right, top, bottom } = document.querySelector("#frame").getBoundingClientRect();
  return Array.from(document.querySelectorAll("#frame .box"), (box) => box.getBoundingClientRect())
    .filter((box) => box.left < left || box.right > right || box.top < top || box.bottom > bottom).length;
}"""
# each heading, and the layers of the features whose boxes it stands over
_HEADINGS = """() => Array.from(document.querySelectorAll(".layer-head span:not(.out)"), (span) => {
  const at = span.getBoundingClientRect(), middle = (at.left + at.right) / 2;
  const under = Array.from(document.querySelectorAll("#frame .node")).filter((node) => {
    const box = node.querySelector(".box").getBoundingClientRect();
    return box.left <= middle && middle <= box.right;
  }).map((node) => Number(node.dataset.id.split("/")[0]));
  return [Number(span.textContent.replace("layer ", "")), [...new Set(under)]];
})"""


def opened(visit, expect, view, **options):
    page = visit(VIEWS[view], **options)
    ready = {"flow": "#panel h2", "compare": ".side-tag", "results": "#results h2"}
    expect(page.locator(ready.get(view, f"#{view} textarea")).first).to_be_visible()
    return page


def go(page, view, where):
    """Another view of the same page."""
    page.evaluate("where => { location.hash = where; }", where)
    page.locator(".side-tag" if view == "compare" else f"#{view}").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(visit, expect, scheme):
    page = opened(visit, expect, "flow", color_scheme=scheme, reduced_motion="reduce")
    for view, where in VIEWS.items():
        go(page, view, where)
        if view == "flow":
            page.get_by_role("button", name="Add to plan").click()  # pressed, and under the pointer
        told = page.evaluate(_CONTRAST)
        assert len(told) > 8, view
        assert [one for one in told if one[1] < 4.5] == [], view


def test_every_control_has_a_name_and_none_is_named_twice_in_a_view(visit, expect):
    page = opened(visit, expect, "flow")
    for view, where in VIEWS.items():
        go(page, view, where)
        named = page.evaluate(_NAMES)
        assert len(named) > 5
        assert [markup for markup, name in named if not name] == [], view
        fields = [name for markup, name in named if re.match("<(input|select|textarea)", markup)]
        assert len(set(fields)) == len(fields), view


def test_tab_goes_through_the_page_in_reading_order_and_shows_where_it_is(visit, expect):
    page = opened(visit, expect, "flow")
    page.locator("body").evaluate("body => body.focus()")
    order = []
    for _ in range(32):
        page.keyboard.press("Tab")
        told = page.evaluate(_FOCUS)
        assert told[1], f"no focus to be seen: {told}"
        assert told[2], f"focus is out of sight: {told}"
        order.append(told)
    places = list(dict.fromkeys(place for place, *_ in order))
    assert places[:5] == ["skip", "masthead", "controls", "figure", "panel"]
    # The graph is one stop, at its seed; arrows move in it.
    assert [one[3] for one in order if one[3]] == [FORCE]


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_window_needs_no_sideways_scrolling(visit, expect, view):
    page = opened(visit, expect, view, viewport=NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert page.evaluate(_OUTSIDE) == []


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("more", ["", "&k=3&t_res=0"], ids=["few", "hundreds"])
def test_a_fitted_graph_is_seen_whole_and_each_heading_stands_over_its_own_layer(visit, expect, viewport, more):
    page = opened(visit, expect, "flow", viewport=viewport)
    if more:
        before = len(drawn(page))
        page.evaluate("more => { location.hash += more; }", more)
        expect(page.locator("#frame .node")).not_to_have_count(before, timeout=30_000)
        page.locator("#figure").get_by_label("Fit the whole graph").click()
    page.locator("#frame").scroll_into_view_if_needed()
    assert page.evaluate(_CUT_OFF) == 0
    headings = page.evaluate(_HEADINGS)
    assert [layer for layer, _ in headings] == sorted({int(name.split("/")[0]) for name in drawn(page)})
    assert all(set(under) <= {layer} for layer, under in headings)
    assert any(under for _, under in headings)


def test_who_asks_for_less_motion_gets_none(visit, expect):
    page = opened(visit, expect, "flow", reduced_motion="reduce")
    before = len(drawn(page))
    page.get_by_label("t(M), as a number").fill("0.5")
    expect(page.locator("#frame .node")).not_to_have_count(before)
    assert page.evaluate("document.getAnimations().length") == 0


def test_groups_have_the_colours_of_the_figures():
    """Their eight lie apart for readers with every kind of colour vision (tests/paper/test_figures.py)."""
    style = (files("saeflow.web") / "static" / "base.css").read_text(encoding="utf-8")
    found = re.findall(r"--g(\d): (#[0-9a-f]{6})", style)
    light, dark = found[:8], found[8:]
    assert [colour for _, colour in light] == list(COLOURS.values())
    assert [colour for _, colour in dark] == list(DARK.values())


def test_the_page_and_its_modules_are_small_and_name_no_other_place():
    static = files("saeflow.web") / "static"
    sources = {file.name: file.read_text(encoding="utf-8") for file in static.iterdir() if file.is_file()}
    assert sum(map(len, sources.values())) < 160_000
    # a published site alone loads these
    sources |= {file.name: file.read_text(encoding="utf-8") for file in (static / "site").iterdir()}
    for name, text in sources.items():
        assert text.count("\n") <= 400, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
        assert not re.search(r"""(src|href|url|import)\W{1,3}(https?:)?//""", text), name
    assert not re.search(r"<style|<script(?! type=\"module\" src=)|style=| on[a-z]+=", sources["index.html"])
