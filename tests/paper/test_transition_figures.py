"""Figures 23 and 24, the loss of a skipped layer and differences: what is drawn is what the tables say."""

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from saeflow.experiments.results import MANIFEST, Results, RunRecord, RunRequest
from saeflow.files import write_atomic
from saeflow.paper import MEDIA, PAGE, PHONE, draw, reading, svg_text
from saeflow.paper.results import write_page
from saeflow.paper.saving import printed_svg

from .sample_transition import FAR, PAIRS, SCALES, transition_tables
from .test_figures import SVG, first, first_printed, texts, tips

TABLES = {table.name: table for table in transition_tables()}
DRAWN = [name for name in TABLES if name != "transition_fits"]
ONE = {
    name: replace(table, rows=tuple(row for row in table.rows if row[0] == PAIRS[0])) for name, table in TABLES.items()
}
EVERY = pytest.mark.parametrize("name", DRAWN)


@EVERY
@pytest.mark.parametrize("medium", MEDIA.values(), ids=MEDIA)
def test_all_text_stands_within_the_figure(name, medium):
    root = ET.fromstring(svg_text(first_printed(ONE[name], medium), alone=True))  # noqa: S314
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for text in root.iter(f"{SVG}text"):
        size = float(text.get("font-size", "10"))
        x, wide = float(text.attrib["x"]), 0.5 * size * len(text.text or "")
        start = x - wide * {"end": 1.0, "middle": 0.5}.get(text.get("text-anchor", "start"), 0.0)
        assert start >= -0.5 * size, text.text
        assert start + wide <= width + size, text.text
        assert 0 <= float(text.attrib["y"]) <= height


@EVERY
@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
def test_the_same_rows_are_the_same_bytes(name, medium):
    assert first_printed(ONE[name], medium) == printed_svg(first(ONE[name], medium))


@EVERY
def test_every_pair_has_a_figure_and_their_mean_comes_first(name):
    assert [plate.of for plate in draw(TABLES[name])] == list(PAIRS)


@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
def test_every_permutation_says_its_number_and_what_one_factor_makes_of_it(medium):
    told = tips(first(ONE["transition_permutations"], medium))
    for applied in SCALES:
        assert sum(f"applied {applied}: " in one for one in told) == 7
    assert any(
        "cosine top-1, matched raw, applied raw: 0.670 (0.660–0.690); 0.600 after a factor of 0.90" in t for t in told
    )
    assert "least-squares T: 0.860 (0.850–0.870)" in told
    assert any("−12.500" in one for one in told), "what lies below the axis is there"
    assert len(told) == 5 + 3 * 7


def test_what_lies_below_the_axis_has_its_number_beside_it():
    shown = texts(first(ONE["transition_permutations"]))
    assert f"−{-FAR:.1f}" in shown
    ticks = [float(one.replace("−", "-")) for one in shown if one.replace("−", "").replace(".", "").isdigit()]
    assert min(tick for tick in ticks if tick != FAR) >= -0.5


@pytest.mark.parametrize("medium", [PAGE, PHONE], ids=["page", "phone"])
def test_every_k_is_drawn_as_it_is_and_after_one_factor(medium):
    told = tips(first(ONE["transition_top_k"], medium))
    marks = [one for one in told if "applied" in one]
    assert len(marks) == 2 * (2 * 2 * 3 * 4)
    assert sum("all" in one and "−40" in one for one in marks) >= 2
    lines = [one for one in told if one.startswith("least-squares T")]
    assert lines == ["least-squares T: 0.860"] * 4
    shown = texts(first(ONE["transition_top_k"], medium))
    assert shown.count("permutation") == 1  # in the key
    assert {"1", "2", "10", "all"} <= set(shown)


def test_losses_stand_in_order_and_the_mean_lies_beyond_the_axis():
    shown = texts(first(ONE["transition_loss"]))
    order = ["B's own dictionary", "least-squares T", "identity: layer skipped", "cosine top-1", "permutation"]
    assert [one for one in shown if one in order] == order
    assert "6.7" in shown
    assert "mean of h: 6.700 (6.680–6.730) nats above 2.850" in tips(first(ONE["transition_loss"]))


@EVERY
def test_gaps_are_left_out(name):
    table = ONE[name]
    for gaps in ({"low", "high", "scaled", "scaled_low", "n"}, {"ev", "change", "difference", "scaled"}):
        rows = tuple(
            tuple(None if column in gaps else cell for column, cell in zip(table.columns, row, strict=True))
            for row in table.rows
        )
        assert texts(first(replace(table, rows=rows)))
    for kind in ("baseline", "matching"):
        kept = tuple(row for row in table.rows if row[1] != kind)
        assert texts(first(replace(table, rows=kept)))
    assert texts(first(replace(table, rows=())))[0] == "no rows"


def test_sentences_say_what_the_tables_do():
    said = {name: reading(TABLES[name]) for name in DRAWN}
    assert said["transition_permutations"] == (
        "The best cosine explains 0.67 (0.66–0.69) of the variance (applied raw), the best permutation 0.63 "
        "(0.62–0.65) (permutation, matched raw, applied raw); least squares reaches 0.86 and the hidden state itself "
        "0.80. Folded when applied, the best cosine explains 0.37 (0.36–0.39) in place of 0.67 (0.66–0.69)."
    )
    assert "W_dec W_dec is best with top-1, binary, applied raw: 0.66 (0.65–0.68)" in said["transition_top_k"]
    assert "Folded top-2 W_dec W_dec explains 0.19" in said["transition_top_k"]
    assert said["transition_loss"].startswith(
        "Through cosine top-1 the loss rises by 0.55 (0.53–0.58) nats; by skipping"
    )
    assert "0.039 (0.035–0.043) more than the permutation" in said["transition_paired"]


def test_a_difference_that_is_told_as_less_has_no_sign():
    table = TABLES["transition_paired"]
    rows = tuple((*row[:3], -row[3], -row[5], -row[4], row[6]) for row in table.rows)
    assert reading(replace(table, rows=rows)) == (
        "As they are, the best cosine explains 0.039 (0.035–0.043) less than the permutation."
    )


@EVERY
def test_a_table_of_one_pair_or_without_baselines_has_its_sentence_still(name):
    table = TABLES[name]
    one = replace(table, rows=tuple(row for row in table.rows if row[0] == PAIRS[1]))
    assert reading(one)
    bare = replace(table, rows=tuple(row for row in one.rows if row[1] != "baseline"))
    assert reading(bare)
    assert reading(replace(table, rows=())) == ""
    assert isinstance(reading(replace(table, rows=tuple(row for row in one.rows if row[1] == "baseline"))), str)


def test_a_folder_of_a_transition_becomes_a_page(tmp_path):
    request = RunRequest("transition", "demo", "demo", 0, ("demo:stories",), {}, {"tokens": 3000})
    record = RunRecord(request, {"saeflow": "1"}, "2026-01-01T00:00:00+00:00", "2026-01-01T00:02:00+00:00", 3, 3)
    write_atomic(tmp_path / MANIFEST, record.to_json().encode())
    kept = [
        replace(table, rows=tuple(row for row in table.rows if row[0] == PAIRS[1])) for table in transition_tables()
    ]
    Results(tmp_path, record).write_tables(kept)
    page = write_page(tmp_path).read_text()
    assert "A match as a transcoder: demo" in page
    assert "The best cosine explains" in page
    assert 'id="t-transition_fits"' in page
    assert (tmp_path / "figures" / "transition_permutations.svg").is_file()
