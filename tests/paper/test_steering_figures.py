"""Figures of a steering sweep: what is drawn is what the tables say, one plate for a theme and direction."""

import functools
import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from saeflow.experiments.results import SummaryTable
from saeflow.paper import COLUMN, FIGURES, PAGE, PHONE, draw, svg_text
from saeflow.paper.frame import Frame
from saeflow.paper.saving import printed_svg
from saeflow.paper.steering import LOOKS, look
from saeflow.paper.style import CLASSES, DARK_OF
from saeflow.paper.words import decimal, decimal_interval

from .sample_steering import DOSES, THEMES, steering_tables
from .test_figures import SVG, VISION, first, first_printed, oklab, printed, texts, tips

SMALL = {table.name: table for table in steering_tables(THEMES[:2], depth=4)}
ONE = {table.name: table for table in steering_tables(THEMES[:1], depth=3)}
DRAWN = [name for name in SMALL if name in FIGURES]
EVERY_TABLE = pytest.mark.parametrize("name", DRAWN)
BOTH = pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
KEYS = {"theme", "direction", "method", "method_a", "method_b", "part", "layer", "value", "mirrors", "choice"}


@functools.cache
def cached(themes, depth):
    return {table.name: table for table in steering_tables(themes, depth)}


def plate(name, medium=PAGE, **keys):
    return next(plate.figure for plate, _ in printed(SMALL[name], medium) if plate.keys == keys)


def test_every_table_of_a_sweep_but_the_cells_and_texts_has_a_figure():
    assert set(SMALL) - set(DRAWN) == {"steering_cells", "steering_samples"}


@EVERY_TABLE
@BOTH
def test_the_same_rows_are_the_same_bytes(name, medium):
    assert first_printed(SMALL[name], medium) == printed_svg(first(SMALL[name], medium))


@EVERY_TABLE
def test_every_colour_has_a_class_and_turns_dark(name):
    for _, drawn in printed(ONE[name]):
        for element in ET.fromstring(svg_text(drawn, alone=True)).iter():  # noqa: S314
            for attribute in ("fill", "stroke"):
                value = element.get(attribute, "none")
                if value != "none":
                    assert f"{attribute[0]}-{CLASSES[value]}" in (element.get("class") or "").split()
                    assert CLASSES[value] in DARK_OF


@EVERY_TABLE
def test_an_svg_has_no_styles_of_its_own_and_names_no_place(name):
    for _, drawn in printed(ONE[name]):
        text = svg_text(drawn, prefix="x-")
        assert "style" not in text
        assert "http" not in text


@EVERY_TABLE
@pytest.mark.parametrize("medium", [PAGE, PHONE, COLUMN], ids=["page", "phone", "column"])
@pytest.mark.parametrize("themes", [("s",), THEMES[:3]], ids=["one theme and layer", "three themes, 26 layers"])
def test_all_text_stands_within_the_figure(name, medium, themes):
    deep = 26 if name in {"steering_by_layer", "steering_features"} else 3
    table = cached(themes, 1 if len(themes) == 1 else deep)[name]
    column = table.columns.index("theme")
    if len(FIGURES[name].each) == 2:
        table = replace(table, rows=tuple(row for row in table.rows if row[column] == themes[-1]))
    for _, drawn in printed(table, medium):
        root = ET.fromstring(svg_text(drawn, alone=True))  # noqa: S314
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        assert width == medium.width
        for text in root.iter(f"{SVG}text"):
            if text.get("transform") is None:
                assert 0 <= float(text.attrib["x"]) <= width
                assert 0 <= float(text.attrib["y"]) <= height


@EVERY_TABLE
def test_a_table_without_rows_says_so(name):
    assert texts(first(replace(SMALL[name], rows=())))[0] == "no rows"


@EVERY_TABLE
def test_gaps_are_left_out(name):
    """Intervals are gaps first, then every number that is no key of its row."""
    table = ONE[name]
    for gaps in ({"low", "high", "n", "default", "behavior", "behavior_low"}, set(table.columns) - KEYS):
        rows = tuple(
            tuple(None if column in gaps else cell for column, cell in zip(table.columns, row, strict=True))
            for row in table.rows
        )
        for drawn in draw(replace(table, rows=rows)):
            assert texts(drawn.figure)


@EVERY_TABLE
def test_a_missing_method_is_no_crash(name):
    table = ONE[name]
    at = [i for i, column in enumerate(table.columns) if column in {"method", "method_a", "method_b", "mirrors"}]
    for gone in ("single", "none", "start", "cumulative"):
        rows = tuple(row for row in table.rows if not any(row[i] == gone for i in at))
        for drawn in draw(replace(table, rows=rows), medium=PHONE):
            assert texts(drawn.figure)


@EVERY_TABLE
def test_hostile_names_are_text(name):
    table = ONE[name]
    hostile = "<script>$x^2$</script>\x00\n日本"
    column = table.columns.index("theme")
    rows = tuple((*row[:column], hostile, *row[column + 1 :]) for row in table.rows)
    text = svg_text(first(replace(table, rows=rows)), alone=True)
    ET.fromstring(text)  # noqa: S314
    assert "<script>" not in text


# One plate each


def test_themes_and_directions_get_a_plate_each():
    plates = draw(SMALL["steering_by_layer"])
    assert [(p.name, p.keys) for p in plates] == [
        (f"steering_by_layer-{slug}-{way}", {"theme": theme, "direction": way})
        for theme, slug in zip(THEMES, ("religion-and-god", "anger"), strict=False)
        for way in ("activate", "suppress")
    ]
    assert plates[0].of == "religion and God, activate"
    assert len({tuple(texts(p.figure)) for p in plates}) == len(plates)


def test_themes_whose_names_differ_in_signs_only_keep_files_of_their_own():
    table = SMALL["steering_by_value"]
    column = table.columns.index("theme")
    names = {THEMES[0]: "C", THEMES[1]: "C++"}
    rows = tuple((*row[:column], names[row[column]], *row[column + 1 :]) for row in table.rows)
    assert [p.name for p in draw(replace(table, rows=rows))] == [
        "steering_by_value-c-activate",
        "steering_by_value-c-suppress",
        "steering_by_value-c-activate-2",
        "steering_by_value-c-suppress-2",
    ]


def test_one_theme_and_direction_is_one_plate_under_the_name_of_the_table():
    table = next(steering_tables(THEMES[:1], 4, directions=("activate",)))
    assert [p.name for p in draw(table)] == [table.name]


# What is drawn


@BOTH
def test_suppression_has_a_point_for_each_r_and_layer_and_the_best_layer_of_each(medium):
    """Figure 9."""
    told = tips(plate("steering_by_layer", medium, theme="anger", direction="suppress"))
    frame = Frame.read(SMALL["steering_by_layer"]).where(theme="anger", direction="suppress")
    for method in ("single", "cumulative"):
        rows = frame.where(method=method).records
        for r in DOSES["suppress"]:
            top = max((row for row in rows if row.number("value") == r), key=lambda row: row.number("score"))
            words = "layer" if method == "single" else "layers to"
            named = f"{method}, {words} {top.count('layer')}, r = {r:g}: score ".replace("-", "−")
            assert f"best layer: {named}{decimal_interval(top.estimate('score'))}, n = 64" in told
    # each once on its line and once in the strip
    assert sum(t.startswith("best layer") for t in told) == 2 * 2 * len(DOSES["suppress"])
    points = [t for t in told if re.match(r"(single|cumulative), layer", t)]
    assert len(points) == len(frame.rows)
    assert f"unsteered: score {decimal(frame.records[0].number('default'))}" in told


def test_lines_of_r_are_named_and_fade_towards_one():
    figure = plate("steering_by_layer", theme="anger", direction="suppress")
    strip = figure.axes[2]  # the lower left of four
    named = [label.get_text() for label in strip.get_yticklabels()]
    assert named == ["r 0.5", "0", "−1", "−2", "−4", "−8"]
    assert set(named) <= set(texts(figure))
    frame = Frame.read(SMALL["steering_by_layer"]).where(theme="anger", direction="suppress", method="single")
    for i, r in enumerate((0.5, 0, -1, -2, -4, -8)):
        rows = [row for row in frame.records if row.number("value") == r]
        best = max(rows, key=lambda row: row.number("score")).number("layer")
        assert (best, i) in {
            (line.get_xdata()[0], line.get_ydata()[0]) for line in strip.lines if len(line.get_xdata()) == 1
        }
    alphas = {line.get_alpha() for axes in figure.axes for line in axes.lines if len(line.get_xdata()) == 4}
    assert len(alphas) == len(DOSES["suppress"])


@BOTH
def test_activation_rings_the_best_layer_of_each_method(medium):
    """Figures 16 and 17b."""
    figure = plate("steering_by_layer", medium, theme="anger", direction="activate")
    frame = Frame.read(SMALL["steering_by_layer"]).where(theme="anger", direction="activate")
    rings = [line for axes in figure.axes for line in axes.lines if line.get_markerfacecolor() == "none"]
    tops = [
        max(frame.where(method=m).records, key=lambda row: row.number("score"))
        for m in ("single", "constant", "linear", "exponential")
    ]
    assert [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings] == [
        (top.number("layer"), top.number("score")) for top in tops
    ]
    for top in tops:
        assert any(f"best {decimal(top.number('score'))}" in said for said in texts(figure))


@pytest.mark.parametrize("direction", ["activate", "suppress"])
def test_every_coefficient_has_score_behavior_and_coherence(direction):
    """Figures 10 and 11."""
    told = tips(plate("steering_by_value", theme="anger", direction=direction))
    frame = Frame.read(SMALL["steering_by_value"]).where(theme="anger", direction=direction)
    for row in frame.records:
        name, value = look(row.words("method")).name, f"{row.number('value'):g}".replace("-", "−")
        score = f"score {decimal_interval(row.estimate('score'))}"
        own = [t for t in told if t.removeprefix("best: ").startswith(f"{name}, ") and f"= {value}: " in t]
        assert any(score in t for t in own)
        assert any(f": behavior {decimal(row.number('behavior'))}, n = 64" in t for t in own)
        assert any(f": coherence {decimal(row.number('coherence'))}, n = 64" in t for t in own)
    assert sum(t.startswith("best: ") for t in told) == len(frame.distinct("method"))


@pytest.mark.parametrize("direction", ["activate", "suppress"])
def test_curves_of_equal_score_are_where_the_formula_puts_them(direction):
    """Section 4.2: Behavioral x Coherence, or (1 - Behavioral) x Coherence, both divided by 5."""
    trade = plate("steering_by_value", theme="anger", direction=direction).axes[-1]
    curves = [line for line in trade.lines if len(line.get_xdata()) == 41]
    scores = []
    for curve in curves:
        b, c = (np.asarray(v) / 5 for v in (curve.get_xdata(), curve.get_ydata()))
        found = (b if direction == "activate" else 1 - b) * c
        assert np.ptp(found) < 1e-9
        scores.append(round(float(found[0]), 6))
        assert decimal(scores[-1], 1) in {t.get_text() for t in trade.texts}
    assert scores == [0.1, 0.2, 0.4, 0.6, 0.8]


def test_coefficients_at_uneven_steps_stand_at_equal_ones_and_say_so():
    assert any("not to scale" in t for t in texts(plate("steering_by_value", theme="anger", direction="activate")))
    table = SMALL["steering_by_value"]
    column = table.columns.index("value")
    steps = {dose: i / 2 for i, dose in enumerate(DOSES["activate"])}
    rows = tuple((*r[:column], steps[r[column]], *r[column + 1 :]) for r in table.rows if r[1] == "activate")
    figure = draw(replace(table, rows=rows))[0].figure
    assert not any("not to scale" in t for t in texts(figure))
    assert list(figure.axes[0].lines[1].get_xdata()) == sorted(steps.values())


@BOTH
def test_confirmed_scores_have_their_random_rows_beneath(medium):
    table = SMALL["steering_best"]
    figure = plate("steering_best", medium, direction="activate")
    told, said = tips(figure), texts(figure)
    for row in Frame.read(table).where(direction="activate").records:
        score = f"score {decimal_interval(row.estimate('score'))}, n = 64"
        name = look(row.words("method")).name
        own = [t for t in told if t.startswith(f"{row.words('theme')}, {name}") and score in t]
        assert own
        if row.words("mirrors"):
            assert any(t.endswith(f"random rows in place of those of {row.words('mirrors')}") for t in own)
        else:
            assert decimal(row.number("score")) in said
            assert any("behavior" in t and "coherence" in t for t in own)
    assert {"unsteered", "prompted", "start alone", "single, start layer", "exponential"} <= set(said)
    assert "random" not in said


def test_random_rows_of_no_method_have_a_row_of_their_own():
    table = SMALL["steering_best"]
    at = table.columns.index("mirrors")
    rows = tuple((*row[:at], "", *row[at + 1 :]) for row in table.rows)
    assert "random" in texts(draw(replace(table, rows=rows))[0].figure)


def test_baselines_are_hollow_and_methods_of_graphs_filled():
    hollow = {name for name, shown in LOOKS.items() if shown.hollow}
    assert hollow == {"none", "prompt", "random", "difference", "probe", "start"}


@BOTH
def test_differences_stand_in_a_block_for_what_they_are_from(medium):
    figure = plate("steering_paired", medium, direction="suppress")
    frame = Frame.read(SMALL["steering_paired"]).where(direction="suppress")
    told = tips(figure)
    assert len(told) == len(frame.rows)
    assert {f"less {look(m).name}" for m in frame.distinct("method_b")} <= set(texts(figure))
    row = frame.where(theme="anger", method_a="cumulative", method_b="start").records[0]
    (own,) = (t for t in told if t.startswith("anger, cumulative less start alone: "))
    assert decimal(abs(row.number("difference"))) in own
    assert own.endswith("n = 64")
    assert "p " in own
    assert "q " in own
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert low < 0 < high


def test_the_grid_has_its_mean_its_ends_and_its_spread():
    figure = plate("steering_sensitivity", direction="suppress")
    told, said = tips(figure), texts(figure)
    for row in Frame.read(SMALL["steering_sensitivity"]).where(direction="suppress").records:
        mean = decimal_interval(row.estimate("mean_score"))
        worst, top = (decimal(row.number(name)) for name in ("worst_score", "best_score"))
        name = f"{row.words('theme')}, {look(row.words('method')).name}"
        assert any(t.startswith(f"{name}: mean {mean} of 6 values, worst {worst}, best {top}") for t in told)
        assert decimal(row.number("spread")) in said


def test_bars_of_features_are_those_of_the_table_with_lines_at_starts():
    """Figure 17a."""
    figure = first(SMALL["steering_features"])
    frame = Frame.read(SMALL["steering_features"])
    for theme, axes in zip(frame.distinct("theme"), figure.axes, strict=True):
        rows = frame.where(theme=theme)
        assert sum(bar.get_height() for bar in axes.patches) == sum(r.number("features") for r in rows.records)
        starts = {r.number("layer") for r in rows.records if r.count("starts")}
        lines = {line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1}
        assert lines == starts != set()
    told = tips(figure)
    assert len([t for t in told if re.match(r"(res|mlp|att), layer \d: \d features?", t)]) == len(frame.rows)
    assert sum("1 of them a start" in t for t in told) == 2


def test_scores_within_a_limit_tell_the_limit():
    told = tips(plate("steering_by_share", direction="activate"))
    frame = Frame.read(SMALL["steering_by_share"]).where(direction="activate")
    for row in frame.records:
        limit = f"at most {100 * row.number('share_limit'):g}\u00a0% changed: {look(row.words('method')).name}"
        assert any(t.startswith(limit) and decimal_interval(row.estimate("score")) in t for t in told)
    assert len([t for t in told if t.startswith("at most")]) == len(frame.rows)


# Colours


@pytest.mark.parametrize("reader", VISION)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_methods_drawn_together_differ_in_colour_or_shape(reader, dark):
    kinds = [look(m) for m in ("start", "single", "constant", "linear", "exponential")]
    seen = [oklab(DARK_OF[CLASSES[kind.tone]] if dark else kind.tone, VISION[reader]) for kind in kinds]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.09
    marks = {(kind.shape, kind.hollow) for kind in kinds}
    assert len(marks) == len(kinds)


def test_a_table_that_lacks_a_column_of_its_figure_is_refused():
    bare = SummaryTable("steering_best", "", "", "", ("theme", "direction", "method"), (("a", "activate", "none"),))
    with pytest.raises(Exception, match="lacks the column score"):
        draw(bare)
