"""What a researcher does: search, follow the flow, read a feature, plan, steer, keep the plan; by mouse or by keys."""

import json
import re
from pathlib import Path

import pytest

from saeflow import FeatureId, Thresholds, open_atlas, trace
from saeflow.labels import words_for

from .conftest import NARROW, drawn, hash_of

FORCE = "3/res/541"
GRAPH = f"#flow?feature={FORCE}&node={FORCE}"


def ids_of(seed, **cuts):
    graph = trace(FeatureId.parse(seed), open_atlas("demo"), thresholds=Thresholds(**cuts))
    return sorted(str(node.feature) for node in graph.nodes)


def node(page, feature):
    return page.locator(f'#frame .node[data-id="{feature}"]')


def test_from_a_search_to_a_steered_text_and_a_saved_plan(visit, expect, tmp_path):
    page = visit()
    expect(page.locator("#frame .node").first).to_be_visible()  # a graph worth a look, at once
    search = page.get_by_role("combobox", name="Search features")
    search.press_sequentially("energy charge force")
    page.get_by_role("option").filter(has_text=FORCE).click()
    expect(node(page, FORCE)).to_be_visible()
    assert sorted(drawn(page)) == ids_of(FORCE)

    page.get_by_label("t(M), as a number").fill("0.4")
    expect(node(page, "3/mlp/489")).to_have_count(0)
    assert sorted(drawn(page)) == ids_of(FORCE, mlp=0.4)
    assert hash_of(page) == ("flow", {"feature": FORCE, "node": FORCE, "t_mlp": "0.4"})

    node(page, "2/res/412").click()
    panel = page.get_by_role("complementary", name="Feature")
    expect(panel.get_by_role("heading", level=2)).to_have_text("electric, energy, charge, velocity")
    panel.get_by_role("button", name="Add to plan").click()
    page.keyboard.press("Escape")
    node(page, FORCE).click()
    expect(panel.get_by_role("heading", level=2)).to_have_text("energy, electric, charge, force")
    panel.get_by_role("button", name="Add to plan").click()

    page.get_by_role("link", name="Steer").click()
    expect(page.locator("table.plan tbody tr")).to_have_count(2, timeout=60_000)  # the model is loaded
    page.get_by_label("strength s").fill("2.5")
    page.get_by_label("Theme").select_option("physics")
    page.get_by_label("Prompt").fill("I think")
    page.get_by_label("new tokens").fill("12")
    page.get_by_label("samples").fill("1")
    page.wait_for_timeout(400)  # a change of a setting waits for the next key
    expect(page.locator(".plan-out")).not_to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Steer", exact=True).click()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    expect(page.locator("#run-status")).to_contain_text("Done in", timeout=60_000)
    plain, steered = (page.locator(f".side.{side} .passage").inner_text() for side in ("plain", "steered"))
    assert plain.startswith("I think")
    assert steered.startswith("I think")
    assert plain != steered
    expect(page.locator(".side.steered .shares")).to_contain_text("changes")
    expect(page.locator(".side.steered .scores")).to_contain_text("coherence")

    with page.expect_download() as saving:
        page.get_by_role("button", name="Save").click()
    path = tmp_path / "plan.json"
    saving.value.save_as(path)
    plan = json.loads(path.read_text(encoding="utf-8"))
    assert [step["feature"] for step in plan["steps"]] == ["2/res/412", FORCE]
    assert plan["made_by"]["schedule"]["s"] == 2.5

    plan["steps"][0]["strength"] = 99.0  # as one edits the file by hand
    path.write_text(json.dumps(plan), encoding="utf-8")
    page.locator("#plan-file").set_input_files(path)
    expect(page.locator("table.plan tbody tr").first).to_contain_text("99")


def test_keys_alone_search_walk_read_and_plan(visit, expect):
    page = visit(GRAPH)
    expect(node(page, FORCE)).to_be_visible()
    press = page.keyboard.press
    press("/")
    page.keyboard.type("electric energy charge vel")
    press("ArrowDown")  # at once: the answer to the last letter is waited for
    marked = page.locator('#search [role="option"][aria-selected="true"]')
    expect(marked).to_have_count(1)
    press("ArrowDown")
    picked = marked.locator(".id").inner_text()
    assert picked != FORCE
    press("Enter")
    expect(page.locator("#panel .where .id")).to_have_text(picked)
    assert hash_of(page)[1]["feature"] == picked

    press("Alt+ArrowLeft")  # the browser's way back
    expect(node(page, FORCE)).to_be_visible()
    node(page, FORCE).focus()
    press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.id") == "2/res/412"
    assert "following" in page.locator("#frame svg").get_attribute("class")
    lit = page.evaluate("Array.from(document.querySelectorAll('#frame .node.on'), g => g.dataset.id)")
    assert {"2/res/412", FORCE} <= set(lit) < set(drawn(page))
    press("p")
    expect(page.locator("#plan-count")).to_have_text("1")
    press("Enter")
    expect(page.locator("#panel .where .id")).to_have_text("2/res/412")
    press("Enter")
    assert page.evaluate("document.activeElement.id") == "panel"
    press("Escape")
    assert page.evaluate("document.activeElement.dataset.id") == "2/res/412"
    width = "Number(document.querySelector('#frame svg').getAttribute('width'))"
    before = page.evaluate(width)
    press("+")
    assert page.evaluate(width) > before
    press("0")
    assert page.evaluate(width) <= page.evaluate("document.querySelector('#frame').clientWidth")
    press("g")
    expect(page.locator("#frame .node.seed")).to_have_attribute("data-id", "2/res/412")
    press("2")
    expect(page.locator("#picked")).to_contain_text("2/res/412")


def test_the_address_holds_what_is_seen_and_never_the_token(visit, expect):
    page = visit(f"{GRAPH}&t_res=0.92&direction=backward")
    expect(node(page, FORCE)).to_be_visible()
    assert sorted(drawn(page)) == sorted(
        str(n.feature)
        for n in trace(FeatureId.parse(FORCE), open_atlas("demo"), thresholds=Thresholds(res=0.92), forward=False).nodes
    )
    assert page.get_by_label("t(R)", exact=True).input_value() == "0.92"
    page.get_by_label("cuts").select_option("0.01")
    expect(page.get_by_label("t(R)", exact=True)).to_be_disabled()
    assert hash_of(page)[1]["fdr"] == "0.01"
    page.get_by_role("link", name="Text").click()
    expect(page.get_by_label("Text", exact=True)).to_be_visible()
    page.go_back()
    page.go_back()
    assert "fdr" not in hash_of(page)[1]
    expect(page.get_by_label("t(R)", exact=True)).to_be_enabled()
    assert "token" not in page.url
    assert page.evaluate("document.cookie") == ""


def test_more_matches_of_a_node_come_and_go(visit, expect):
    page = visit(GRAPH)
    expect(node(page, FORCE)).to_be_visible()
    before = drawn(page)
    page.get_by_role("button", name="Expand").click()
    expect(page.get_by_role("button", name="Fold")).to_be_visible()
    expect(page.locator("#frame .node")).not_to_have_count(len(before))
    assert set(before) < set(drawn(page))
    page.get_by_role("button", name="Fold").click()
    expect(page.locator("#frame .node")).to_have_count(len(before))


def test_two_graphs_are_told_apart_by_letters_and_dashes_too(visit, expect):
    page = visit(f"{GRAPH}&b=2/res/11&t_res=0.3")
    expect(node(page, "2/res/11")).to_be_visible()
    a, b = set(ids_of(FORCE, res=0.3)), set(ids_of("2/res/11", res=0.3))
    letters = page.evaluate(
        "Object.fromEntries(Array.from(document.querySelectorAll('#frame .node'),"
        " g => [g.dataset.id, g.querySelector('.side-letter').textContent]))"
    )
    told = {f: "a b" if f in a & b else "a" if f in a else "b" for f in a | b}
    assert letters == told
    assert {"a", "b"} <= set(letters.values())
    dashed = "getComputedStyle(document.querySelector('#frame .wire.side-{}')).strokeDasharray"
    assert page.evaluate(dashed.format("b")) != page.evaluate(dashed.format("a")) == "none"
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.locator(".side-letter")).to_have_count(0)


def test_what_the_server_refuses_is_said_with_what_to_do(visit, expect):
    page = visit("#flow?feature=9/res/1&node=9/res/1", refused=True)
    problem = page.locator("#flow-problem").get_by_role("alert")
    expect(problem).to_contain_text("9/res")
    assert problem.locator(".todo").inner_text().endswith(".")
    search = page.get_by_role("combobox", name="Search features")
    search.fill(FORCE)
    search.press("Enter")
    expect(node(page, FORCE)).to_be_visible()
    expect(problem).to_have_count(0)


def test_stop_ends_a_text_between_two_tokens(visit, expect):
    page = visit(f"#steer?plan={FORCE}&samples=8&tokens=200")
    expect(page.locator("table.plan tbody tr")).to_have_count(1, timeout=60_000)
    page.get_by_role("button", name="Steer", exact=True).click()
    expect(page.locator("#run-status")).to_contain_text("Writing", timeout=60_000)
    expect(page.locator(".side.steered .own").first).not_to_be_empty(timeout=20_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#run-status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Steer", exact=True)).to_be_enabled()
    assert page.locator(".cursor").count() == 0


def test_a_text_becomes_a_grid_that_leads_to_graphs(visit, expect):
    page = visit("#text")
    page.get_by_label("Text", exact=True).fill("The force on the object is equal to the")
    page.get_by_role("button", name="Read").click()
    cells = page.locator("table.cells button.cell")
    expect(cells.first).to_be_visible(timeout=60_000)
    layers = page.locator("table.cells thead th").count() - 1
    assert layers == 6
    assert cells.count() == layers * page.locator("table.cells tbody tr").count()
    cell = page.locator('button.cell[data-row="2"][data-column="3"]')
    cell.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.column") == "4"
    page.keyboard.press("Enter")
    feature = page.locator("#cell .fires .id").first.inner_text()
    assert feature.startswith("4/res/")
    shares = [float(text.rstrip("%")) for text in page.locator("#cell .fires .value").all_text_contents()]
    assert shares == sorted(shares, reverse=True), "by share of each feature's own strongest activation"
    expect(page.locator("#cell")).to_contain_text("over the feature's own strongest")
    cut = page.locator("#cell .fires").get_by_role("button", name=f"{feature} without its predecessors")
    cut.click()
    told = page.locator("#cell .removals")
    expect(told).to_contain_text(re.compile(r"control.*%|None of its matched predecessors"), timeout=60_000)
    cut.click()
    expect(told).to_have_count(0)
    page.locator("#cell .fires .near").first.click()
    expect(page.locator("#panel .where .id")).to_have_text(feature)
    assert hash_of(page)[1]["feature"] == feature


def test_a_card_says_first_what_its_feature_fires_on_and_how_strongly(visit, expect):
    page = visit("#flow?feature=4/res/72&node=4/res/72")
    panel = page.get_by_role("complementary", name="Feature")
    expect(panel.locator(".histogram")).to_be_visible(timeout=20_000)
    known = words_for("demo").get(FeatureId.parse("4/res/72"))
    lines = panel.locator(".context")
    assert lines.count() == len(known.contexts) + len(known.spread)
    assert lines.first.bounding_box()["y"] < panel.locator(".score").first.bounding_box()["y"]
    context = known.contexts[0]
    tokens = lines.first.locator("span:not(.source)")
    shown = [f"activation {value:.3g}" if value else "silent here" for value in context.values]
    assert tokens.evaluate_all("all => all.map(one => one.title)") == shown
    heat = tokens.evaluate_all("all => all.map(one => Number(one.style.getPropertyValue('--heat-share')))")
    assert [share > 0 for share in heat] == [value > 0 for value in context.values]
    assert max(heat) == 1
    told = lines.locator(".source[title]")
    assert all("of its activations" in title for title in told.evaluate_all("all => all.map(one => one.title)"))
    quantiles = [float(text.split()[0]) for text in told.all_text_contents()]
    assert quantiles == pytest.approx([one.quantile for one in known.spread], abs=0.006)
    bars = panel.locator(".histogram title").all_text_contents()
    assert [int(bar.split()[0]) for bar in bars] == list(known.histogram.counts)
    heads = panel.locator("h3, h4").all_text_contents()
    expected = ("From strong to weak, by quantile", "Suppresses (logit lens)", "Predecessors")
    order = [heads.index(head) for head in expected]
    assert order == sorted(order)
    near = panel.locator(".neighbours").last.locator(".id").all_text_contents()
    assert near == [f"4/res/{row}" for row, _ in known.near]


def test_a_card_says_what_its_words_do_not_hold(visit, expect):
    card = {"contexts": [], "spread": [], "histogram": None, "near": []}

    def older(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | card)

    page = visit()
    page.route(re.compile("/api/feature"), older)
    page.goto(page.url.partition("#")[0] + "#flow?feature=4/res/72&node=4/res/72")
    expect(page.locator("#panel .missing")).to_contain_text(
        "passages, passages from strong to weak, a histogram of activations and rows near it"
    )
    expect(page.locator("#panel .missing code")).to_have_text("saeflow labels make")


def test_every_control_and_number_says_what_it_is(visit, expect):
    page = visit(f"{GRAPH}&plan=2/res/412")
    untold = """() => Array.from(document.querySelectorAll("button, input, select, textarea, summary, .value"))
      .filter((e) => e.checkVisibility() && e.id !== "skip")
      .filter((e) => ![e, ...(e.labels ?? [])].some((one) => one.closest("[title]")?.title))
      .map((e) => e.outerHTML.slice(0, 110))"""
    expect(page.locator("#panel .score").first).to_be_visible(timeout=20_000)
    assert page.evaluate(untold) == []
    page.get_by_role("link", name="Steer").click()
    expect(page.locator("table.plan tbody tr")).to_have_count(1, timeout=60_000)
    assert page.evaluate(untold) == []
    page.get_by_role("link", name="Text").click()
    page.get_by_label("Text", exact=True).fill("The force on the object")
    page.get_by_role("button", name="Read").click()
    page.locator('button.cell[data-row="2"][data-column="3"]').click(timeout=60_000)
    assert page.evaluate(untold) == []


def test_the_export_is_the_graph_that_is_shown(visit, expect, tmp_path):
    page = visit(f"{GRAPH}&t_att=0.5")
    expect(node(page, FORCE)).to_be_visible()
    page.get_by_text("Export").click()
    with page.expect_download() as saving:
        page.locator('a[data-format="json"]').click()
    path = tmp_path / "graph.json"
    saving.value.save_as(path)
    said = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(n["feature"] for n in said["nodes"]) == ids_of(FORCE, att=0.5) == sorted(drawn(page))


def test_on_a_phone_a_touched_node_opens_below_the_graph(visit, expect):
    page = visit(GRAPH, viewport=NARROW, has_touch=True)
    expect(node(page, FORCE)).to_be_visible()
    page.get_by_role("button", name="Thresholds, layers, colours").click()
    page.get_by_label("k", exact=True).fill("2")
    expect(page.locator("#frame .node")).not_to_have_count(15)
    node(page, "2/res/412").tap()
    expect(page.locator("#panel .where .id")).to_have_text("2/res/412")
    frame, panel = (page.locator(where).bounding_box() for where in ("#frame", "#panel"))
    assert panel["y"] >= frame["y"] + frame["height"]
    assert panel["width"] <= NARROW["width"]


def test_a_name_that_is_being_typed_outlives_a_new_answer(visit, expect):
    page = visit("#text")
    page.get_by_label("Text", exact=True).fill("The force on the object is equal to the")
    page.get_by_role("button", name="Read").click()
    page.get_by_role("button", name="What happened at token 9").click(timeout=60_000)
    chosen = page.locator("#trace-frame .node.stream").first
    expect(chosen).to_be_visible(timeout=120_000)
    chosen.click()
    held = []

    def hold(route):
        held.append(route)

    page.route(re.compile("/api/trace"), hold)
    pin = page.get_by_role("button", name="Pin", exact=True)
    pin.click()
    expect(page.get_by_role("button", name="Pinned")).to_be_focused()
    group = page.get_by_label("Group of this node")
    group.press_sequentially("my ")
    assert len(held) == 1
    held.pop().continue_()
    page.unroute(re.compile("/api/trace"))
    expect(page.locator(".measured .case")).to_contain_text("pinned", timeout=60_000)
    expect(group).to_have_value("my ")
    expect(group).to_be_focused()
    page.keyboard.type("verbs")
    page.keyboard.press("Enter")
    expect(page.locator(".measured .case")).to_contain_text("pinned, my verbs", timeout=60_000)
    expect(group).to_be_focused()


def test_a_token_opens_what_happened_there_and_a_slider_cuts_it(visit, expect):
    page = visit("#text")
    page.get_by_label("Text", exact=True).fill("The force on the object is equal to the")
    page.get_by_role("button", name="Read").click()
    page.get_by_role("button", name="What happened at token 9").click(timeout=60_000)
    wires = page.locator("#trace-frame path.wire")
    expect(wires.first).to_be_visible(timeout=60_000)
    many = wires.count()
    assert "at=9" in page.evaluate("location.hash")
    page.get_by_label("effect, as a number").fill("0.2")
    expect(wires).not_to_have_count(many, timeout=60_000)
    assert 0 < wires.count() < many
    # an edge says both numbers
    middle = page.locator("#trace-frame path.hit").last.evaluate(
        "path => { const at = path.getPointAtLength(path.getTotalLength() / 2).matrixTransform(path.getScreenCTM());"
        " return [at.x, at.y]; }"
    )
    page.mouse.move(*middle)
    expect(page.locator("#tip")).to_contain_text("effect")
    expect(page.locator("#tip")).to_contain_text("→")
    # a feature opens its card, with what was measured above it; a pin stays where everything else is cut
    chosen = page.locator("#trace-frame .node.stream").first
    name = chosen.get_attribute("data-id")
    chosen.click()
    expect(page.locator("#panel .where .id")).to_have_text(name)
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_role("button", name="Pinned")).to_be_visible(timeout=60_000)
    page.get_by_label("Group of this node").fill("mine")
    page.get_by_label("Group of this node").press("Tab")
    expect(page.locator(".measured .case")).to_contain_text("pinned, mine")
    page.locator(".trace-sheet summary").click()
    with page.expect_download() as found:
        page.locator(".trace-sheet").get_by_role("button", name="json", exact=True).click()
    saved = json.loads(Path(found.value.path()).read_text())
    assert saved["supernodes"] == {"mine": [f"{name}@9"]}
    assert saved["pins"] == [f"{name}@9"]
    page.get_by_role("button", name="Back to all tokens").click()
    expect(page.locator("table.cells button.cell").first).to_be_visible()
