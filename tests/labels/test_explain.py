"""Labels by a model that answers well, badly or not at all, and what detection makes of them."""

import json
import re

import numpy as np
import pytest

from saeflow.errors import BadFile, InvalidArgument, Unreachable
from saeflow.ids import FeatureId, Site
from saeflow.labels import Context, FeatureWords, WordsFolder, write_words
from saeflow.labels.detection import CONTROLS, OTHERS, Detection, DetectionTrial, Example, Silence, make_trial
from saeflow.labels.explain import TRIES, Chat, RequestEstimate, estimate, explain, marked, write_explanations
from saeflow.labels.lines import write_lines

SITE = Site.parse("4/res")
KING, FRUIT, ALONE = (FeatureId(SITE, index) for index in range(3))


def context(*tokens, fires):
    return Context(tokens, tuple(2.0 if token == fires else 0.0 for token in tokens))


@pytest.fixture
def folder(tmp_path):
    def passages(word, n):
        return tuple(context(f"{i} ", word, f" of {i}", fires=word) for i in range(n))

    rows = [
        FeatureWords("king", ("king",), ("crown",), passages("king", 8), 0.01),
        FeatureWords("fruit", ("fruit",), (), passages("fruit", 6)),
        FeatureWords("alone", ("alone",), (), passages("alone", 1)),
        None,
    ]
    write_words(tmp_path / "words", SITE, rows)
    controls = [{"tokens": ["nothing ", f"here {i}"], "source": "", "active": [1] if i < 6 else []} for i in range(8)]
    write_lines(tmp_path / "words" / "4.res.controls.jsonl.gz", map(json.dumps, controls))
    return tmp_path / "words"


class Reader:
    """Answers well: names the marked word, and says a passage fires where the word stands."""

    name = "reader-1"

    def __init__(self):
        self.asked = []

    def complete(self, conversations):
        self.asked += conversations
        return [self.answer(conversation) for conversation in conversations]

    def answer(self, conversation):
        text = conversation[1]["content"]
        if "The feature fires on:" not in text:
            return json.dumps({"explanation": f"the word {re.search('<<(.*?)>>', text)[1]}"})
        word = re.search("fires on: the word (.*)", text)[1]
        return json.dumps({"fires": [int(word in passage) for passage in text.split("Passage ")[1:]]})


def test_a_good_label_gets_a_full_score(folder, tmp_path):
    chat = Reader()
    assert isinstance(chat, Chat)
    king, fruit, alone = explain(folder, chat, [FRUIT, KING, ALONE], held_out=4, silent=4)
    assert [one.feature for one in (king, fruit, alone)] == [KING, FRUIT, ALONE]
    assert king.label == "the word king"
    assert king.detection == Detection(1.0, 1.0, 4, 4, CONTROLS)
    assert king.detection.score == 1.0
    assert fruit.detection == Detection(1.0, 1.0, 3, 2, CONTROLS), "two controls are silent"
    assert (alone.label, alone.detection) == ("the word alone", None)
    assert "held-out" in alone.problem
    assert king.problem == fruit.problem == ""


def test_what_was_shown_is_not_what_is_tested(folder):
    chat = Reader()
    list(explain(folder, chat, [KING]))
    shown, tested = (re.findall(r"(\d) (?:<<)?king", c[1]["content"]) for c in chat.asked)
    assert sorted(shown) == ["0", "2", "4", "6"]
    assert sorted(tested) == ["1", "3", "5", "7"]
    assert "<<" not in chat.asked[1][1]["content"]


def test_a_label_that_says_nothing_scores_one_half(folder):
    class Always(Reader):
        def answer(self, conversation):
            said = super().answer(conversation)
            return json.dumps({"fires": [1] * len(json.loads(said)["fires"])}) if "fires" in json.loads(said) else said

    (one,) = explain(folder, Always(), [KING])
    assert (one.detection.found, one.detection.left, one.detection.score) == (1.0, 0.0, 0.5)


def test_what_was_answered_is_not_asked_again(folder, tmp_path):
    first, again = Reader(), Reader()
    told = list(explain(folder, first, [KING, FRUIT], cache=tmp_path / "a"))
    assert list(explain(folder, again, [KING, FRUIT], cache=tmp_path / "a")) == told
    assert again.asked == []
    other = Reader()
    other.name = "another"
    list(explain(folder, other, [KING], cache=tmp_path / "a"))
    assert len(other.asked) == 2
    reseeded = Reader()
    list(explain(folder, reseeded, [KING], cache=tmp_path / "a", seed=1))
    assert len(reseeded.asked) == 1, "the order of the passages is another, the label is not"


BAD = [
    "",
    "no JSON",
    "[]",
    "3",
    '{"explanation": 3}',
    '{"explanation": ""}',
    '{"explanation": "x", "fires": []}',
    '{"fires": "x"}',
    json.dumps({"explanation": "x" * 400}),
    '{"explanation": "x"',
    '{"fires": [1]}',
    '{"fires": [true, false]}',
    '{"fires": [0, 1, 2, 1, 0, 1, 1]}',
    'Sure! {"explanation": "x"}',
    "[" * 100_000,
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_answer_is_asked_for_again(folder, bad):
    class Unsure(Reader):
        def answer(self, conversation):
            return bad if len(conversation) == 2 else super().answer(conversation)

    chat = Unsure()
    (one,) = explain(folder, chat, [KING])
    assert one.label == "the word king"
    assert one.detection.score == 1.0
    assert [len(c) for c in chat.asked] == [2, 4, 2, 4]
    assert "not the JSON" in chat.asked[1][3]["content"]
    assert list(explain(folder, Unsure(), [KING])) == [one], "good answers to second questions are kept too"


@pytest.mark.parametrize("bad", BAD)
def test_bad_answers_are_given_up(folder, bad):
    class Broken(Reader):
        def answer(self, conversation):
            return bad

    chat = Broken()
    one, two = explain(folder, chat, [KING, FRUIT])
    assert one.label == two.label == ""
    assert str(TRIES) in one.problem
    assert one.detection is None
    assert len(chat.asked) == 2 * TRIES
    assert write_explanations(folder, [one, two]) == 0


def test_a_code_fence_is_taken_off(folder):
    class Fencing(Reader):
        def answer(self, conversation):
            return f"```json\n{super().answer(conversation)}\n```\n"

    (one,) = explain(folder, Fencing(), [KING])
    assert one.detection.score == 1.0


def test_a_label_is_one_line(folder):
    class Wordy(Reader):
        def answer(self, conversation):
            return '{"explanation": " two\\n lines\\u0000 "}'

    (one,) = explain(folder, Wordy(), [ALONE])
    assert one.label == "two lines\x00"
    assert len(one.label.splitlines()) == 1


def test_a_chat_that_fails_loses_nothing_that_was_answered(folder):
    class Failing(Reader):
        def complete(self, conversations):
            if any("fruit" in c[1]["content"] for c in conversations):
                raise Unreachable("gone")
            return super().complete(conversations)

    told = []
    with pytest.raises(Unreachable):
        told += explain(folder, Failing(), [KING, FRUIT], at_once=1)
    chat = Reader()
    assert len(list(explain(folder, chat, [KING, FRUIT]))) == 2
    assert len(chat.asked) == 2, "only the second feature"


def test_a_chat_that_gives_another_number_of_answers_is_said(folder):
    class Short(Reader):
        def complete(self, conversations):
            return []

    with pytest.raises(BadFile, match="0 answers to 1 questions"):
        list(explain(folder, Short(), [KING]))


def test_explanations_are_written_into_the_words(folder):
    before = WordsFolder(folder).site(SITE)
    assert write_explanations(folder, explain(folder, Reader(), [KING, ALONE])) == 2
    after = WordsFolder(folder).site(SITE)
    assert (after[0].label, after[0].by, after[0].score) == ("the word king", "reader-1", 1.0)
    assert (after[2].label, after[2].score) == ("the word alone", None)
    assert after[0].contexts == before[0].contexts
    assert after[1] == before[1]
    assert after[3] is None


def test_features_without_passages_ask_nobody(folder):
    chat = Reader()
    (one, two) = explain(folder, chat, [FeatureId(SITE, 3), FeatureId(SITE, 99)])
    assert {one.problem, two.problem} == {"it has no passages"}
    assert chat.asked == []


@pytest.mark.parametrize("name", ["shown", "held_out", "silent", "at_once"])
def test_numbers_below_one_are_refused(folder, name):
    with pytest.raises(InvalidArgument, match=name):
        list(explain(folder, Reader(), [KING], **{name: 0}))


def test_tokens_that_fire_are_marked():
    told = Context(("a", "b", "c", "d", "e"), (0.0, 5.0, 2.0, 0.5, 4.0))
    assert marked(told) == "a<<bc>>d<<e>>"
    assert marked(Context(("a",), (0.0,))) == "a"


def test_silent_passages_come_from_others_where_there_are_no_controls(folder):
    (folder / "4.res.controls.jsonl.gz").unlink()
    silence = Silence.of(folder / "4.res.controls.jsonl.gz", SITE, WordsFolder(folder).site(SITE))
    trial = make_trial(KING, silence.rows[0].contexts[1::2], silence, 5, np.random.default_rng(0))
    assert trial.silent_from == OTHERS
    texts = [example.text for example in trial.examples if not example.fires]
    assert texts
    assert not any("king" in text for text in texts)


def test_the_score_is_the_balanced_accuracy():
    trial = DetectionTrial(tuple(Example("", fires) for fires in (True, True, True, True, False, False)), CONTROLS)
    found = trial.scored([True, True, True, False, True, False])
    assert (found.found, found.left, found.score) == (0.75, 0.5, 0.625)
    with pytest.raises(InvalidArgument, match="2 answers for 6"):
        trial.scored([True, False])


def test_bad_controls_are_said(folder):
    write_lines(folder / "4.res.controls.jsonl.gz", ['{"tokens": ["a"]}'])
    with pytest.raises(BadFile, match=r"controls\.jsonl\.gz: line 1"):
        list(explain(folder, Reader(), [KING]))


def test_requests_are_counted_before_they_are_made(folder, tmp_path):
    kept = tmp_path / "kept"
    missing = FeatureId(SITE, 3)
    asked = [KING, FRUIT, ALONE, missing]
    before = estimate(folder, Reader.name, asked, cache=kept)
    assert before == RequestEstimate(requests=5, cached=0, silent=1), (
        "three labels; two scores, for ALONE has no held-out passage"
    )
    assert not kept.exists()
    chat = Reader()
    list(explain(folder, chat, asked, cache=kept))
    assert len(chat.asked) == before.requests
    assert estimate(folder, Reader.name, asked, cache=kept) == RequestEstimate(0, 5, 1)
    assert estimate(folder, "another", asked, cache=kept) == before
    assert estimate(folder, Reader.name, [KING], cache=kept, seed=1) == RequestEstimate(1, 1, 0), (
        "other passages, same label"
    )
