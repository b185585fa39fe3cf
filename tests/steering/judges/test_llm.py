"""The judge that asks a language model, against a real server that misbehaves."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from saeflow.errors import InvalidArgument, Unreachable
from saeflow.llm.endpoint import Pacing
from saeflow.steering.judges import Judge, Score
from saeflow.steering.judges.llm import LLMJudge
from saeflow.steering.judges.rubrics import BadAnswer, rubric_for
from saeflow.steering.plan import SteeringDirection
from saeflow.steering.theme import Theme, load_theme

from . import killed_run
from .asking import FAST, THEME, by_number, expected, judge, score, texts
from .server import KEY, Asked, Reply, after, marks, says, serving

pytest.importorskip("openai")


def test_two_hundred_texts_are_asked_eight_at_a_time_and_never_again(tmp_path) -> None:
    told = []
    slow = lambda asked: Reply(by_number(asked).body, delay=0.01)  # noqa: E731
    with serving(slow) as server:
        first = judge(server, tmp_path)
        assert isinstance(first, Judge)
        assert score(first, 200, progress=lambda *now: told.append(now)) == expected(200)
        assert +first.counts == Counter(asked=200)
        assert 1 < server.most <= 8
        again = judge(server, tmp_path)
        assert score(again, 200) == expected(200)
        assert +again.counts == Counter(cached=200)
        assert len(server.asked) == 200
    assert [done for done, _, _ in told] == list(range(201))
    assert {total for _, total, _ in told} == {200}


def test_what_is_sent_is_the_rubric_and_the_text_alone(tmp_path) -> None:
    with serving(lambda asked: marks(4, 2)) as server:
        score(judge(server, tmp_path))
        score(judge(server, tmp_path, temperature=None))
    rubric = rubric_for(THEME, SteeringDirection.ACTIVATE)
    sent, plain = (asked.body for asked in server.asked)
    assert sent == {
        "model": "m",
        "temperature": 0.0,
        "seed": 0,
        "response_format": {"type": "json_object"},
        "messages": [{"role": "system", "content": rubric.system}, {"role": "user", "content": rubric.ask("text 0")}],
    }
    assert set(plain) == {"model", "messages", "seed", "response_format"}
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_behavior_is_the_mark_of_the_themes_own_subject_and_the_others_are_kept(tmp_path) -> None:
    theme = load_theme("scientific-concepts", "gemma-scope-2b")
    with serving(lambda asked: marks(4, [1, 5, 3])) as server:
        asks = judge(server, tmp_path)
        assert asks.score(theme, SteeringDirection.SUPPRESS, texts(1)) == [Score(4, 5)]
        assert asks.answers(theme, SteeringDirection.SUPPRESS, texts(1))[0].behavioral == (1, 5, 3)
    assert len(server.asked) == 1


TROUBLES = {
    "busy": Reply("{}", 429),
    "busy for a time": Reply("{}", 429, {"Retry-After": "0.05"}),
    "busy for milliseconds": Reply("{}", 429, {"retry-after-ms": "50"}),
    "broken": Reply("oops", 500),
    "away": Reply("", 503, {"Retry-After": "0.05"}),
    "cut": Reply(cut=True),
    "torn": Reply('{"choices"', torn=True),
    "a page": Reply("<html>Welcome</html>", headers={"content-type": "text/html"}),
    "half of it": Reply('{"choices": ['),
    "another shape": Reply('{"answer": "4"}'),
    "no choice": Reply('{"choices": []}'),
    "a list": Reply("[1, 2]"),
    "an error that says 200": Reply('{"error": {"message": "overloaded"}, "choices": null}'),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_on_the_way_is_waited_out(trouble, tmp_path) -> None:
    with serving(after(TROUBLES[trouble], TROUBLES[trouble], then=by_number)) as server:
        asks = judge(server, tmp_path)
        assert score(asks) == expected(1)
        assert +asks.counts == Counter(asked=3, retried=2)
        assert [asked.messages for asked in server.asked] == [server.asked[0].messages] * 3


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_without_end_is_an_error_that_keeps_what_was_answered(trouble, tmp_path) -> None:
    bad = lambda asked: by_number(asked) if asked.text != "text 3" else TROUBLES[trouble]  # noqa: E731
    with serving(bad) as server:
        with pytest.raises(Unreachable, match=r"gave no answer in 4 tries.*127\.0\.0\.1|127\.0\.0\.1.*in 4 tries"):
            score(judge(server, tmp_path, pacing=Pacing(concurrency=1, retries=3, backoff=0.01)), 6)
        server.answer = by_number
        asks = judge(server, tmp_path)
        assert score(asks, 6) == expected(6)
        assert asks.counts["cached"] >= 3
        assert asks.counts["asked"] + asks.counts["cached"] == 6


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(tmp_path) -> None:
    with serving(after(Reply(delay=2.5), then=by_number)) as server:
        asks = judge(server, tmp_path, pacing=Pacing(timeout=1.0, retries=1, backoff=0.01))
        assert score(asks) == expected(1)
        assert +asks.counts == Counter(asked=2, retried=1)
    with serving(lambda asked: Reply(delay=1.0)) as server:
        asks = judge(server, tmp_path / "other", pacing=Pacing(timeout=0.1, retries=1, backoff=0.01))
        with pytest.raises(Unreachable, match=r"nothing came whole within 0\.1 s"):
            score(asks)


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_an_end_is_cut_off(status, tmp_path) -> None:
    with serving(lambda asked: Reply(status=status, endless=True)) as server:
        with pytest.raises(Unreachable, match="it answered without an end: more than 1,048,576 bytes came"):
            score(judge(server, tmp_path, pacing=Pacing(retries=1, backoff=0.01)))
        assert len(server.asked) == 2
        assert server.poured < 32 << 20


def test_an_answer_that_drips_has_the_time_of_any_other_in_sum(tmp_path) -> None:
    with serving(lambda asked: Reply("x" * 200, drip=0.05)) as server:
        start = time.monotonic()
        with pytest.raises(Unreachable, match=r"nothing came whole within 0\.3 s"):
            score(judge(server, tmp_path, pacing=Pacing(timeout=0.3, retries=1, backoff=0.01)))
        assert time.monotonic() - start < 5


def test_nobody_listens(tmp_path) -> None:
    with serving(by_number) as server:
        pass
    with pytest.raises(Unreachable, match="the connection failed"):
        score(judge(server, tmp_path))


def test_retry_after_holds_back_every_request(tmp_path) -> None:
    busy = Reply("{}", 429, {"Retry-After": "0.5"})
    with serving(after(busy, then=by_number)) as server:
        assert score(judge(server, tmp_path, pacing=Pacing(concurrency=2, backoff=0.01)), 12) == expected(12)
        times = [asked.at for asked in server.asked]
    late = [at for at in times if at - times[0] >= 0.5]
    assert len(late) >= 10  # all but those that were under way


def test_a_wait_beyond_all_patience_ends_the_run(tmp_path) -> None:
    with (
        serving(lambda asked: Reply("{}", 429, {"Retry-After": "86400"})) as server,
        pytest.raises(Unreachable, match=r"asks to wait 86400 s, more than Pacing\.longest of 120 s"),
    ):
        score(judge(server, tmp_path))
    assert len(server.asked) <= 8


REFUSALS = {
    401: (Unreachable, "Give a key"),
    403: (Unreachable, "Give a key"),
    404: (InvalidArgument, "Check the model 'm'"),
    400: (InvalidArgument, "Check the model"),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_not_repeated_and_says_what_to_do(status, tmp_path) -> None:
    kind, advice = REFUSALS[status]
    reply = Reply(json.dumps({"error": {"message": "I refuse."}}), status)
    with serving(lambda asked: reply) as server:
        with pytest.raises(kind, match=rf"{status}: I refuse\. {advice}"):
            score(judge(server, tmp_path))
        assert len(server.asked) == 1


def test_no_quota_left_is_not_waited_for(tmp_path) -> None:
    reply = Reply('{"error": {"message": "You exceeded.", "code": "insufficient_quota"}}', 429)
    with serving(lambda asked: reply) as server, pytest.raises(Unreachable, match="no quota left"):
        score(judge(server, tmp_path))
    assert len(server.asked) == 1


@pytest.mark.parametrize("unknown", ["seed", "response_format"])
def test_a_parameter_the_endpoint_does_not_know_is_left_out(unknown, tmp_path) -> None:
    def picky(asked: Asked) -> Reply:
        if unknown in asked.body:
            return Reply(json.dumps({"error": {"message": f"Unrecognized argument: {unknown}"}}), 400)
        return by_number(asked)

    with serving(picky) as server:
        asks = judge(server, tmp_path, pacing=Pacing(concurrency=1))
        assert score(asks, 4) == expected(4)
        assert +asks.counts == Counter(asked=5)


def test_a_temperature_the_endpoint_does_not_allow_is_an_error_that_says_so(tmp_path) -> None:
    reply = Reply('{"error": {"message": "temperature must be 1"}}', 400)
    with serving(lambda asked: reply) as server, pytest.raises(InvalidArgument, match="Set temperature to None"):
        score(judge(server, tmp_path))


BAD = [
    "I like it.",
    '{"coherence": 4}',
    '{"coherence": 9, "behavioral": 1}',
    '{"coherence": 3.5, "behavioral": 1}',
    None,
]


@pytest.mark.parametrize("bad", BAD)
def test_an_answer_that_comes_right_at_the_third_try(bad, tmp_path) -> None:
    with serving(after(says(bad), says(bad), then=by_number)) as server:
        asks = judge(server, tmp_path)
        assert score(asks) == expected(1)
        assert +asks.counts == Counter(asked=3, reasked=2)
    first, second, _ = (asked.messages for asked in server.asked)
    assert second[:2] == first
    assert second[2] == {"role": "assistant", "content": bad or ""}
    assert "That cannot be read" in second[3]["content"]
    assert [asked.body["seed"] for asked in server.asked] == [0, 1, 2]


def test_an_answer_that_never_comes_right_stops_no_other(tmp_path) -> None:
    never = lambda asked: says('{"coherence": 7}') if asked.text == "text 2" else by_number(asked)  # noqa: E731
    with serving(never) as server:
        with pytest.raises(BadAnswer, match=r"1 of 20 answers of m could not be read.*3 times.*lacks behavioral"):
            score(judge(server, tmp_path), 20)
        server.answer = by_number
        asks = judge(server, tmp_path)
        assert score(asks, 20) == expected(20)
        assert +asks.counts == Counter(asked=1, cached=19)


def test_equal_texts_are_asked_once_and_other_questions_again(tmp_path) -> None:
    other = Theme("letters", "letters and words", "", ())
    with serving(by_number) as server:
        asks = judge(server, tmp_path)
        assert asks.score(THEME, SteeringDirection.ACTIVATE, texts(2) * 5) == expected(2) * 5
        assert asks.counts["asked"] == 2
        for theme, direction in [(other, SteeringDirection.ACTIVATE), (THEME, SteeringDirection.ACTIVATE)]:
            asks.score(theme, direction, texts(2))
        assert asks.counts["asked"] == 4
        for changes in ({"temperature": 0.5}, {"seed": 1}):
            score(judge(server, tmp_path, **changes))
        score(LLMJudge("another", server.url, key=KEY, cache=tmp_path / "answers", pacing=FAST))
    assert len(server.asked) == 7


def test_a_killed_run_goes_on_where_it_stopped(tmp_path) -> None:
    cache = tmp_path / "answers"
    slow = lambda asked: Reply(by_number(asked).body, delay=0.2)  # noqa: E731
    with serving(slow) as server:
        command = [sys.executable, "-m", f"{__package__}.killed_run", server.url, str(cache)]
        root = Path(__file__).parents[len(__package__.split("."))]
        with subprocess.Popen(command, cwd=root) as process:
            deadline = time.monotonic() + 60
            while len(list(cache.rglob("*.json"))) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        kept = len(list(cache.glob("??/[!.]*.json")))
        assert 5 <= kept < 40
        server.asked.clear()
        scores, asks = killed_run.run(server.url, cache)
        assert scores == expected(40)
        assert asks.counts["cached"] == kept
        assert len({asked.text for asked in server.asked}) == asks.counts["asked"] == 40 - kept


def test_an_interrupted_run_keeps_what_is_under_way(tmp_path) -> None:
    def interrupt(done, total, what):
        if done == 5:
            raise KeyboardInterrupt

    slow = lambda asked: Reply(by_number(asked).body, delay=0.2)  # noqa: E731
    with serving(slow) as server:
        with pytest.raises(KeyboardInterrupt):
            score(judge(server, tmp_path, pacing=Pacing(concurrency=4)), 40, progress=interrupt)
        assert len(server.asked) < 30
        asks = judge(server, tmp_path)
        assert score(asks, 40) == expected(40)
        assert len(server.asked) == 40


def test_a_damaged_answer_is_asked_for_again(tmp_path) -> None:
    with serving(by_number) as server:
        score(judge(server, tmp_path), 4)
        files = sorted((tmp_path / "answers").rglob("*.json"))
        assert len(files) == 4
        files[0].write_text("")
        files[1].write_text(files[1].read_text().replace('"coherence": ', '"coherence": 1'))
        files[2].write_text('{"format": "another"}')
        asks = judge(server, tmp_path)
        assert score(asks, 4) == expected(4)
        assert +asks.counts == Counter(asked=3, cached=1)
