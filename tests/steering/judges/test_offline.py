"""The offline judge: laws of coherence, topics told apart, and nothing learned from what is judged."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saeflow.errors import InvalidArgument, MissingExtra
from saeflow.steering.judges import Judge, Judged
from saeflow.steering.judges.offline import OfflineJudge, Usual, pack_background
from saeflow.steering.judges.topic import cut, fit, held_out, logistic_curve, windows_of
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Task

from .planted import LAND, PROMPT, SEA, theme, unsteered, written

pytest.importorskip("sklearn")
USUAL = Usual.of(unsteered())
FRESH = tuple(range(36))


def judged(loss=3.0, ids=FRESH, text="some text"):
    return Judged(text, PROMPT, loss, tuple(ids))


def background(n=25):
    return [f"{text} {text}" for text in written(LAND, n, seed=9)]


def judge(**changes):
    return OfflineJudge(background(), unsteered(), **changes)


def behavior(of, texts, about=None):
    scores = of.score(
        about or theme(), SteeringDirection.ACTIVATE, [Judged(text, PROMPT, 3.0, FRESH) for text in texts]
    )
    return [score.behavior for score in scores]


losses = st.floats(0, 20)


@given(losses, losses)
def test_more_loss_is_never_more_coherent(one, other) -> None:
    low, high = sorted((one, other))
    assert 0 <= USUAL.coherence(judged(high)) <= USUAL.coherence(judged(low)) <= 5


@given(st.floats(0, 6))
def test_a_text_whose_every_token_is_half_as_probable_gets_half_the_marks(more) -> None:
    loss = USUAL.loss + more
    assert USUAL.coherence(judged(loss + math.log(2))) == pytest.approx(USUAL.coherence(judged(loss)) / 2)


def test_a_text_as_probable_as_three_of_four_samples_gets_full_marks_and_samples_are_near_the_top() -> None:
    assert USUAL.coherence(judged(USUAL.loss)) == USUAL.coherence(judged(0.0)) == 5
    usual = Usual.of(unsteered(300, seed=8))
    marks = np.array([usual.coherence(sample) for sample in unsteered(300, seed=9)])
    assert marks.mean() > 4.5
    assert 0.65 < (marks == 5).mean() < 0.8  # one in four loses by its loss, and a few by repetition


@given(st.integers(2, 11), st.integers(2, 9), st.floats(0, 3))
def test_a_loop_of_low_loss_is_punished_as_much_as_it_repeats(period, times, loss) -> None:
    ids = list(range(period)) * times
    once = USUAL.coherence(judged(loss, range(period * times)))
    looped = USUAL.coherence(judged(loss, ids))
    new = period / (period * times - 2)  # the trigrams that are new
    assert looped <= once * max(1 / times, new / USUAL.distinct[2]) + 1e-9
    longer = USUAL.coherence(judged(loss, ids + ids[:period]))
    assert longer < looped or len(ids) * 4 < USUAL.units


def test_a_loop_is_told_from_a_text_of_the_same_loss_in_words_as_in_tokens() -> None:
    usual = Usual.of([dataclasses.replace(sample, ids=()) for sample in unsteered()])
    assert (usual.words, USUAL.words) == (True, False)
    text = written(LAND, 1, seed=77)[0]
    loop = " ".join(text.split()[:4] * 8)
    fresh, looped = (usual.coherence(Judged(t, PROMPT, 3.0)) for t in (text, loop))
    assert looped < fresh / 2


def test_a_text_that_stops_at_once_loses_what_it_lacks_of_a_quarter() -> None:
    full = [USUAL.coherence(judged(ids=range(n))) for n in (9, 20, 36, 90)]
    assert full == [5.0] * 4
    assert USUAL.coherence(judged(ids=range(3))) == pytest.approx(5 * 3 / 9)
    assert USUAL.coherence(Judged(" \n", PROMPT)) == 0
    assert USUAL.coherence(judged(ids=range(1))) > 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_text_without_a_loss_is_refused_and_so_are_too_few_samples(loss) -> None:
    with pytest.raises(InvalidArgument, match="Give its mean loss"):
        USUAL.coherence(judged(loss))
    with pytest.raises(InvalidArgument, match="Give its mean loss"):
        Usual.of([*unsteered(), judged(loss)])
    with pytest.raises(InvalidArgument, match="3 unsteered samples"):
        Usual.of([*unsteered(3), Judged("", PROMPT)])
    with pytest.raises(InvalidArgument, match="ids for all texts"):
        USUAL.coherence(judged(ids=()))


@given(st.lists(st.sampled_from(["a", "bb ", " \n", "c\t", "  dd"]), max_size=80), st.integers(1, 30))
def test_cutting_loses_nothing_and_pieces_are_of_like_size(parts, window) -> None:
    text = "".join(parts).lstrip()
    pieces = cut(text, window)
    assert "".join(pieces) == text
    sizes = [len(piece.split()) for piece in pieces]
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert not sizes or len(sizes) == 1 or abs(np.mean(sizes) - window) <= window / 2 + 1


def test_a_topic_is_told_from_others_and_a_mixture_lies_between() -> None:
    of = judge()
    assert isinstance(of, Judge)
    on, off = behavior(of, written(SEA, 20, seed=31)), behavior(of, written(LAND, 20, seed=32))
    assert min(on) > 4
    assert max(off) < 1
    half = [f"{a} {b}" for a, b in zip(written(SEA, 9, 33), written(LAND, 9, 34), strict=True)]
    assert all(1.5 < mark < 3.5 for mark in behavior(of, half))
    assert behavior(of, ["", "  \n"]) == [0.0, 0.0]


def test_the_mark_of_a_text_does_not_depend_on_what_is_judged_with_it() -> None:
    texts = written(SEA, 4, 41) + written(LAND, 4, 42)
    of = judge()
    alone = [behavior(of, [text])[0] for text in texts]
    assert behavior(of, texts[::-1])[::-1] == alone
    assert behavior(judge(), texts) == alone  # deterministic
    many = behavior(of, texts * 40)
    assert many == alone * 40


def test_nothing_is_learned_from_samples_of_other_prompts_than_the_plain_one() -> None:
    """Those that ask for the theme, are about it, or belong to another theme."""
    texts = written(SEA, 3, 43) + written(LAND, 3, 44)
    about = theme(suppress=Task("The ship", "No ships here. The ship", 36))
    others = [
        dataclasses.replace(sample, prompt=prompt, text=text)
        for prompt in ("The ship", "No ships here. The ship", "A text about ships. I think", "It is")
        for sample, text in zip(unsteered(8), written(SEA, 8, 45), strict=True)
    ]
    before = behavior(judge(), texts, about)
    assert behavior(OfflineJudge(background(), [*unsteered(), *others]), texts, about) == before
    plain = [dataclasses.replace(sample, prompt=PROMPT) for sample in others]
    assert behavior(OfflineJudge(background(), [*unsteered(), *plain]), texts, about) != before


def test_unsteered_samples_are_marked_as_if_they_had_not_been_seen() -> None:
    """Texts of half the topic: those in the background would else get lower marks than others of their kind."""
    mixed = [f"{a} {b}" for a, b in zip(written(SEA, 80, 91, 12), written(LAND, 80, 92, 16), strict=True)]
    samples = [dataclasses.replace(sample, text=text) for sample, text in zip(unsteered(40), mixed[:40], strict=True)]
    of = OfflineJudge(background(), samples)
    seen, unseen = np.mean(behavior(of, mixed[:40])), np.mean(behavior(of, mixed[40:]))
    assert seen == pytest.approx(unseen, abs=0.25)
    topic = of.topic(theme())
    held = topic.slope * np.array([topic.held[text] for text in mixed[:40]]) + topic.offset
    assert behavior(of, mixed[:40]) == pytest.approx(list(5 / (1 + np.exp(-held))))
    assert np.mean(topic.decide(mixed[:40])) < np.mean(topic.decide(mixed[40:])) - 0.1


def test_both_directions_get_the_same_marks_and_progress_is_told() -> None:
    told, of = [], judge()
    texts = unsteered(8)
    about = theme(suppress=Task(PROMPT, "No ships. I think", 36))
    there = of.score(about, SteeringDirection.ACTIVATE, texts, progress=lambda *now: told.append(now[:2]))
    assert of.score(about, SteeringDirection.SUPPRESS, texts) == there
    assert told == [(0, 8), (8, 8)]


def test_samples_may_come_by_prompt_or_in_one_row() -> None:
    other = [dataclasses.replace(sample, prompt="It is", loss=1.0) for sample in unsteered()]
    one = OfflineJudge(background(), {"any": unsteered(), ("key", 1): other})
    two = OfflineJudge(background(), iter([*other, *unsteered()]))
    text = Judged(written(SEA, 1, 46)[0], "It is", 3.0, FRESH)
    scores = [of.score(theme(), SteeringDirection.ACTIVATE, [text])[0] for of in (one, two)]
    assert scores[0] == scores[1]
    assert scores[0].coherence == pytest.approx(5 * math.exp(1 - 3))


def test_a_prompt_without_samples_is_refused_except_the_one_that_asks_for_the_theme() -> None:
    of = judge()
    asked = Judged("it was on the sea", "A text about ships. I think", 3.0, FRESH)
    assert of.score(theme(), SteeringDirection.ACTIVATE, [asked])[0].coherence == 5
    for text, direction in [(asked, SteeringDirection.SUPPRESS), (judged(), SteeringDirection.ACTIVATE)]:
        unknown = dataclasses.replace(
            text, prompt=text.prompt if direction is SteeringDirection.SUPPRESS else "Never seen"
        )
        with pytest.raises(InvalidArgument, match="there are some of 'I think'"):
            of.score(theme(), direction, [unknown])


def test_the_report_is_of_texts_that_were_held_out() -> None:
    report = judge().report(theme())
    assert (report.theme, report.examples, report.background) == ("sailing", 20, 55)
    assert report.auc > 0.95
    assert report.on_topic > 4
    assert report.off_topic < 1
    assert report.brier < 0.1
    assert report.error < 0.15
    assert sum(b.n for b in report.bins) == report.windows + report.background
    assert sum(b.weight for b in report.bins) == pytest.approx(1)
    predicted = [b.predicted for b in report.bins]
    assert predicted == sorted(predicted)


def test_examples_like_the_background_are_told_apart_by_nobody() -> None:
    """Labels without meaning: held out, the classifier that fits them all knows nothing, and says so."""
    same = written(LAND, 60, seed=51)
    report = held_out("none", windows_of(same[:20], same[20:]))
    assert 0.25 < report.auc < 0.75
    assert abs(report.on_topic - report.off_topic) < 1
    assert report.brier < 0.3
    seen = fit(windows_of(same[:20], same[20:]))
    assert np.mean(np.array(seen.marks(written(LAND, 40, 52))) / 5) == pytest.approx(0.5, abs=0.15)


def test_the_number_of_background_texts_moves_no_mark_much() -> None:
    """Both classes weigh the same: ten times the background is no reason to believe less in the topic."""
    texts = written(SEA, 10, 61) + written(LAND, 10, 62)
    few, many = (fit(windows_of(theme().examples, written(LAND, n, 63))).marks(texts) for n in (20, 200))
    assert np.abs(np.array(few) - np.array(many)).max() < 1


@pytest.mark.parametrize(("yes", "no"), [(400, 400), (400, 4000)])
def test_the_curve_finds_the_probability_when_both_classes_are_equally_likely(yes, no) -> None:
    """Decisions of two normal laws, 2 apart: log odds are 2 x where both are as likely, however many were drawn."""
    draw = np.random.default_rng(0)
    decisions = np.concatenate([draw.normal(1, 1, yes), draw.normal(-1, 1, no)])
    slope, offset = logistic_curve(decisions, np.arange(yes + no) < yes)
    assert slope == pytest.approx(2, rel=0.2)
    assert offset == pytest.approx(0, abs=0.25)


def test_a_probability_is_the_curve_through_windows_that_were_held_out() -> None:
    windows = windows_of(theme().examples, background())
    topic = fit(windows)
    held = np.array([topic.held[text] for text in windows.texts])
    assert (topic.slope, topic.offset) == logistic_curve(held, windows.topic)
    new = [*written(SEA, 3, 95), *written(LAND, 3, 96)]
    expected = 1 / (1 + np.exp(-(topic.slope * topic.decide(new) + topic.offset)))
    assert topic.probabilities(new) == pytest.approx(expected)


def test_the_curve_is_flat_where_decisions_point_the_wrong_way() -> None:
    assert logistic_curve(np.arange(40.0), np.arange(40) < 12) == (0.0, 0.0)
    slope, offset = logistic_curve(np.arange(40.0), np.arange(40) >= 28)  # told apart without a fault
    assert np.isfinite([slope, offset]).all()
    assert slope > 0


@pytest.mark.parametrize(("examples", "texts", "what"), [(4, 25, "examples"), (20, 0, "background")])
def test_too_little_to_learn_from_is_refused(examples, texts, what) -> None:
    few = theme(examples=tuple(written(SEA, examples, 1)))
    of = OfflineJudge(background(texts), [dataclasses.replace(s, prompt=few.activate.asked) for s in unsteered()])
    with pytest.raises(InvalidArgument, match=rf"the theme 'sailing': \d {what}"):
        of.report(few)
    with pytest.raises(InvalidArgument, match="window = 3"):
        judge(window=3)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch) -> None:
    for module in ("linear_model", "model_selection", "pipeline", "feature_extraction.text", "metrics"):
        monkeypatch.setitem(sys.modules, f"sklearn.{module}", None)
    with pytest.raises(MissingExtra, match=r"scikit-learn.*pip install -e '\.\[judge\]'"):
        behavior(judge(), ["text"])


def test_the_background_of_the_demo_pack_has_as_much_of_each_domain() -> None:
    found = pack_background("demo", 3, seed=1)
    assert len(set(found)) == 15
    assert pack_background("demo", 3, seed=1) == found != pack_background("demo", 3, seed=2)


def test_marks_are_the_same_in_another_process() -> None:
    """Whatever the seed of hashes."""
    code = (
        "from tests.steering.judges.test_offline import judge, behavior, written, SEA, LAND\n"
        "print(behavior(judge(), written(SEA, 3, 81) + written(LAND, 3, 82)))"
    )
    expected = str(behavior(judge(), written(SEA, 3, 81) + written(LAND, 3, 82)))
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert told.stdout.strip() == expected
