"""Figures: the same rows are the same bytes, numbers drawn are the table's, gaps are no crash."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import saeflow.paper
from saeflow.errors import InvalidArgument
from saeflow.experiments.results import SummaryTable
from saeflow.paper import (
    COLUMN,
    FIGURES,
    MEDIA,
    PAGE,
    PHONE,
    agreement_by_layer,
    calibrated_thresholds,
    draw,
    save,
    svg_text,
)
from saeflow.paper.fig03_scores import chosen_layers
from saeflow.paper.frame import GROUPS, Frame, Interval
from saeflow.paper.saving import printed_svg
from saeflow.paper.style import CLASSES, COLOURS, DARK, DARK_OF, apart, value_axis
from saeflow.paper.words import decimal, decimal_interval, percent, percent_interval, points_interval

from .sample_results import AGREEMENT, THRESHOLDS, deactivation_tables, every_table, origins_tables

SMALL = {t.name: t for t in (*origins_tables(range(2), ["cosine"], ["fineweb"]), *deactivation_tables(range(1, 3)))}
EVERY_TABLE = pytest.mark.parametrize("name", SMALL)
SVG = "{http://www.w3.org/2000/svg}"


def texts(figure) -> list[str]:
    return [t.text or "" for t in ET.fromstring(svg_text(figure, alone=True)).iter(f"{SVG}text")]  # noqa: S314


def tips(figure) -> list[str]:
    return [t.text or "" for t in ET.fromstring(svg_text(figure, alone=True)).iter(f"{SVG}title")]  # noqa: S314


def first(table, medium=PAGE):
    return draw(table, medium=medium)[0].figure


def printed(table, medium=PAGE):
    """The plates of a table, each with its SVG."""
    return tuple((plate, plate.svg) for plate in draw(table, medium=medium))


def first_printed(table, medium=PAGE):
    return printed(table, medium)[0][1]


def test_every_table_of_the_contract_has_a_figure_and_a_sample():
    ours = {"agreement_by_layer", "calibrated_thresholds", "remaining", "control_match"}
    steering = {name for name in FIGURES if name.startswith("steering_")}  # test_steering_figures has them
    transitions = {name for name in FIGURES if name.startswith("transition_")}  # test_transition_figures has them
    comparisons = {name for name in FIGURES if name.startswith("compare_")}  # tests/comparison has them
    assert set(FIGURES) - ours - steering - transitions - comparisons == set(every_table())


@EVERY_TABLE
@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
def test_the_same_rows_are_the_same_bytes(name, medium):
    assert first_printed(SMALL[name], medium) == printed_svg(first(SMALL[name], medium))


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_files_hold_no_date_and_no_chance(ending, tmp_path):
    paths = [save(first(SMALL["table_1"]), tmp_path / f"{i}.{ending}") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not re.search(rb"20[23]\d-\d\d-\d\d|CreationDate", paths[0].read_bytes())


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"'\.gif'.*End it in"):
        save(first(SMALL["table_1"]), tmp_path / "a.gif")


@EVERY_TABLE
def test_every_colour_has_a_class_and_turns_dark(name):
    root = ET.fromstring(svg_text(first_printed(SMALL[name]), alone=True))  # noqa: S314
    for element in root.iter():
        classes = (element.get("class") or "").split()
        for attribute in ("fill", "stroke"):
            value = element.get(attribute, "none")
            if value != "none":
                assert f"{attribute[0]}-{CLASSES[value]}" in classes
    assert set(CLASSES.values()) == set(DARK_OF)


@EVERY_TABLE
def test_marks_drawn_by_reference_have_no_colour_of_their_own(name):
    """A browser does not apply the page's rules within a reference: they would stay light in the dark."""
    root = ET.fromstring(svg_text(first_printed(SMALL[name])))  # noqa: S314
    for path in (path for defs in root.iter("defs") for path in defs.iter("path")):
        assert not {"fill", "stroke", "class"} & set(path.attrib)
    for use in root.iter("use"):
        assert "fill" in use.attrib


@EVERY_TABLE
def test_an_svg_has_no_styles_of_its_own_and_names_no_place(name):
    text = svg_text(first_printed(SMALL[name]), prefix="x-")
    assert "style" not in text
    assert "http" not in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(i.startswith("x-") for i in ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


@EVERY_TABLE
@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
def test_all_text_stands_within_the_figure(name, medium):
    root = ET.fromstring(svg_text(first_printed(SMALL[name], medium), alone=True))  # noqa: S314
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    assert width == medium.width
    for text in root.iter(f"{SVG}text"):
        if text.get("transform") is None:
            assert 0 <= float(text.attrib["x"]) <= width
            assert 0 <= float(text.attrib["y"]) <= height


@EVERY_TABLE
def test_a_table_without_rows_says_so(name):
    said = texts(first(replace(SMALL[name], rows=())))
    assert said[0] == "no rows"
    assert SMALL[name].title in " ".join(said)


@EVERY_TABLE
def test_gaps_are_left_out(name):
    """Every number that is no key of its row is a gap in turn: intervals, then values too."""
    table = SMALL[name]
    kept = {"layer", "r", "method", "dataset", "group", "strategy", "removed", "new_group", "score", "kind"}
    for gaps in ({"low", "high", "change_low", "control_low", "n", "histogram"}, set(table.columns) - kept):
        rows = tuple(
            tuple(
                None if column in gaps and not isinstance(cell, str) else cell
                for column, cell in zip(table.columns, row, strict=True)
            )
            for row in table.rows
        )
        assert texts(first(replace(table, rows=rows)))


@EVERY_TABLE
def test_a_missing_group_is_no_crash(name):
    table = SMALL[name]
    at = [i for i, column in enumerate(table.columns) if column in {"group", "group_a", "group_b"}]
    rows = tuple(row for row in table.rows if not any(row[i] in {"MLP", "RES & ATT"} for i in at))
    assert texts(first(replace(table, rows=rows)))


@pytest.mark.parametrize("layers", [range(3, 4), range(32)], ids=["one layer", "32 layers"])
def test_one_layer_and_thirty_two_are_drawn(layers):
    tables = (*origins_tables(layers, ["cosine"], ["fineweb"]), *deactivation_tables(layers))
    for table in tables:
        if "layer" in table.columns:
            assert texts(first(table, PHONE))


def test_methods_get_a_figure_each():
    plates = draw(every_table()["transition"])
    assert [(p.name, p.of) for p in plates] == [("transition-cosine", "cosine"), ("transition-pearson", "pearson")]
    assert texts(plates[0].figure) != texts(plates[1].figure)


def test_what_looks_the_same_is_drawn_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(saeflow.paper, "printed_svg", lambda figure: drawn.append(figure) or printed_svg(figure))
    table = replace(SMALL["by_rescale"], title="Drawn once")
    (plate, *_), (again, *_), (narrow, *_) = draw(table), draw(table), draw(table, medium=PHONE)
    assert plate.svg == again.svg == printed_svg(first(table))
    assert len(drawn) == 1
    (named, *_) = draw(replace(table, title="Drawn anew"))
    assert len({plate.svg, narrow.svg, named.svg}) == len(drawn) == 3


@pytest.mark.parametrize("name", ["shares_by_dataset", "methods", "table_1", "by_strategy", "by_rescale"])
def test_hostile_names_are_text(name):
    table = SMALL[name]
    hostile = "<script>$x^2$</script>\x00\n日本"
    column = table.columns.index("dataset" if "dataset" in table.columns else "strategy")
    rows = tuple((*row[:column], hostile, *row[column + 1 :]) for row in table.rows)
    text = svg_text(first(replace(table, rows=rows)), alone=True)
    ET.fromstring(text)  # noqa: S314
    assert "<script>" not in text
    if name != "by_rescale":
        assert "$x^2$" in text.replace("&lt;", "<")


def test_unknown_tables_and_missing_columns_are_refused():
    with pytest.raises(InvalidArgument, match=r"'weather' has no figure.*shares_by_layer"):
        draw(SummaryTable("weather", "", "", "", ("a",), ((1,),)))
    with pytest.raises(InvalidArgument, match="lacks the column share"):
        draw(SummaryTable("shares_by_dataset", "", "", "", ("dataset", "group"), (("all", "RES"),)))
    with pytest.raises(InvalidArgument, match="2 cells for 1 columns"):
        Frame.read(SummaryTable("table_1", "", "", "", ("a",), ((1, 2),)))


# What is drawn is what the table says.


def test_bars_carry_the_shares_of_the_table():
    table = SMALL["shares_by_dataset"]
    said = texts(first(table))
    for row in Frame.read(table).records:
        assert percent(row.number("share")) in said
        assert f"n\u00a0= {row.count('n'):,}".replace("\u00a0", " ") in said


def test_trials_carry_rates_changes_controls_and_n():
    said = texts(first(SMALL["by_strategy"]))
    for row in Frame.read(SMALL["by_strategy"]).records:
        rate, change = row.estimate("deactivated"), row.estimate("change", "change_low", "change_high")
        assert percent_interval(rate) in said
        assert decimal_interval(change) in said
        assert percent(row.number("control_deactivated")) in said
        assert decimal(row.number("control_change")) in said


def test_searches_chosen_by_their_outcome_are_not_drawn_by_group():
    table = SMALL["by_strategy"]
    gap = ("exhaustive", "RES", "RES", 0.99, 0.98, 1.0, 50, 0.9, 0.9, 0.9, None, None, None, None, 0)
    assert "exhaustive" not in texts(first(replace(table, rows=(*table.rows, gap))))


def test_a_matrix_has_its_numbers_row_by_row():
    table = SMALL["transition"]
    found = Frame.read(table).lookup("group_a", "group_b")
    wanted = [percent(found[a, b].number("probability")).removesuffix("\u00a0%") for a in GROUPS for b in GROUPS]
    said = texts(first(table))
    cells = [t for t in said if re.fullmatch(r"[0-9.]+", t)]
    assert cells[-len(wanted) :] == wanted or cells[: len(wanted)] == wanted


def test_pairs_without_a_test_stay_blank():
    frame = Frame.read(SMALL["separability"])
    said = texts(first(SMALL["separability"]))
    assert said.count("–") == sum(row.count("tests") == 0 for row in frame.records)
    assert said.count("75") == sum(row.count("tests") > 0 for row in frame.records)


def test_lines_tell_their_numbers_when_pointed_at():
    told = tips(first(SMALL["shares_by_layer"]))
    row = Frame.read(SMALL["shares_by_layer"]).lookup("dataset", "layer", "group")["all", "1", "RES"]
    assert f"RES, layer 1: {percent_interval(row.estimate('share'))}, n = 500" in told


def test_out_of_distribution_data_are_marked():
    said = texts(first(every_table()["methods"]))
    assert {"python †", "tinystories †", "fineweb"} <= set(said)
    assert "† texts the Pearson tables were not made on" in said


def test_agreement_and_thresholds_take_plain_rows():
    assert "res, layer 3: 60.0\u00a0% the same, n = 400" in tips(agreement_by_layer(AGREEMENT))
    assert "res, layer 3: 75.0\u00a0% among the k best, n = 400" in tips(agreement_by_layer(AGREEMENT, medium=COLUMN))
    told = tips(calibrated_thresholds(THRESHOLDS))
    assert "mlp, layer 2: 0.270" in told
    assert "att, layer 5, fixed: 70.0\u00a0% kept" in told
    assert texts(agreement_by_layer([])) == ["no rows", "Agreement of matching methods · cf. C.4 of arXiv 2502.03032"]


def test_a_caption_names_the_paper_and_can_be_cut_off():
    figure = first(SMALL["table_1"])
    assert "table 1 of arXiv 2502.03032" in svg_text(figure)
    cut = svg_text(figure, captioned=False)
    assert "arXiv" not in cut
    height = [float(re.search(r' height="([0-9.]+)"', text)[1]) for text in (cut, svg_text(figure))]
    assert height[0] < height[1]


# Style


def oklab(colour: str, seen: np.ndarray) -> np.ndarray:
    """A colour as seen through a matrix of cones, in OKLab (Ottosson 2020)."""
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(seen @ linear, 0, 1)
    cones = np.cbrt(
        np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        )
        @ linear
    )
    return (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ cones
    )


# Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanope": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.mark.parametrize("palette", [COLOURS, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("reader", VISION)
def test_the_eight_colours_stay_apart(palette, reader):
    seen = [oklab(colour, VISION[reader]) for colour in palette.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.09


@pytest.mark.parametrize("palette", [COLOURS, DARK], ids=["light", "dark"])
def test_the_eight_colours_stay_apart_in_grey(palette):
    lightness = sorted(oklab(colour, np.eye(3))[0] for colour in palette.values())
    assert min(b - a for a, b in itertools.pairwise(lightness)) > 0.04


def test_the_settings_of_the_caller_come_back():
    before = dict(mpl.rcParams)
    svg_text(first(SMALL["table_1"]))
    assert dict(mpl.rcParams) == before


@given(st.lists(st.floats(0, 10), min_size=1, max_size=9, unique=True), st.floats(0.1, 1))
def test_ticks_kept_apart_have_the_ends_first(values, room):
    values = sorted(values)
    kept = apart(values, room)
    assert values[0] in kept
    assert set(kept) <= set(values)
    least = room * (values[-1] - values[0])
    assert all(b - a >= least * (1 - 1e-9) for a, b in itertools.pairwise(kept))


@given(st.floats(-5, 5), st.floats(1e-4, 10))
def test_ticks_are_few_and_within(low, reach):
    axes = Figure().add_subplot()
    value_axis(axes, "y", low, low + reach)
    assert len(axes.get_yticks()) <= 7
    assert all(low - 1e-5 * reach <= tick <= low + reach * (1 + 1e-5) for tick in axes.get_yticks())


def test_numbers_are_written_as_people_read_them():
    assert [percent(v) for v in (0.713, 1.0, 0.004, 0.0, -0.5, None)] == [
        "71\u00a0%",
        "100\u00a0%",
        "0.4\u00a0%",
        "0\u00a0%",
        "−50\u00a0%",
        "–",
    ]
    assert percent_interval(Interval(0.713, 0.68, 0.741)) == "71\u00a0% (68–74)"
    assert percent_interval(Interval(0.713)) == "71\u00a0%"
    assert decimal_interval(Interval(-1.76, -1.8, -1.72)) == "−1.76 (−1.80 to −1.72)"
    assert points_interval(Interval(0.031, -0.01, 0.052)) == "+3.1 (−1.0 to +5.2) pp"
    assert decimal(-0.001) == "0.00"


def test_layers_between_are_chosen_through_the_depth():
    assert chosen_layers(range(26)) == (8, 17)
    assert chosen_layers(range(6)) == (2, 3)
    assert chosen_layers([0, 4, 9]) == (4,)
    assert chosen_layers([4, 9]) == (4, 9)
    assert chosen_layers([4]) == (4,)


def test_figures_load_no_torch_and_reports_no_matplotlib():
    code = (
        "import sys, saeflow.report; assert 'matplotlib' not in sys.modules; "
        "import saeflow.paper.results; from saeflow.paper.claims import claims; claims(); "
        "print(sorted({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
