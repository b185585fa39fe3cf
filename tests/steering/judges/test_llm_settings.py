"""Where settings of the judge come from, what is refused, and that the key goes nowhere but to the endpoint."""

import json
import logging
import pickle
import sys
import traceback
from urllib.parse import unquote

import pytest

from saeflow.errors import InvalidArgument, MissingExtra, Unreachable
from saeflow.llm.endpoint import Pacing
from saeflow.steering.judges.llm import LLMJudge
from saeflow.steering.judges.rubrics import BadAnswer
from saeflow.steering.plan import SteeringDirection

from .asking import FAST, THEME, by_number, expected, judge, score, texts
from .server import KEY, Asked, Reply, says, serving

pytest.importorskip("openai")


def test_the_key_is_in_no_message_log_file_or_repr(tmp_path, caplog, capfd) -> None:
    """Not even where the endpoint repeats it."""

    def telling(asked: Asked) -> Reply:
        echo = f"you sent {asked.headers['authorization']}"
        return {
            "text 0": by_number(asked),
            "text 1": says(echo),
            "text 2": Reply(json.dumps({"error": {"message": echo}}), 401),
            "text 3": Reply(echo, 500),
            "text 4": Reply("".join(f"%{ord(c):02X}" for c in echo)),
            "text 5": Reply(json.dumps({"error": echo})),
            "text 6": says(json.dumps({"coherence": KEY, "behavioral": 1})),
        }[asked.text]

    caplog.set_level(logging.DEBUG)
    shown = []
    with serving(telling) as server:
        asks = judge(server, tmp_path, pacing=Pacing(retries=1, backoff=0.01))
        score(asks)
        for text in texts(7)[1:]:
            with pytest.raises((Unreachable, BadAnswer)) as caught:
                asks.score(THEME, SteeringDirection.ACTIVATE, [text])
            shown += [repr(caught.value), *traceback.format_exception(caught.value)]
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
        assert len(server.asked) == 1 + 3 + 1 + 2 + 2 + 2 + 3
    shown += [repr(asks), repr(vars(asks)), asks.name, caplog.text, *capfd.readouterr()]
    shown += [repr(record.__dict__) for record in caplog.records]
    shown += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len([text for text in shown if "[key]" in text]) >= 6
    assert [text for text in shown if KEY in unquote(text)] == []
    with pytest.raises(InvalidArgument, match="not written to files"):
        pickle.dumps(asks)


def test_settings_come_from_the_environment_and_arguments_come_first(tmp_path, monkeypatch) -> None:
    with serving(by_number) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
        monkeypatch.setenv("SAEFLOW_JUDGE_MODEL", "local")
        monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path))
        asks = LLMJudge(pacing=FAST)
        assert score(asks) == expected(1)
        assert asks.name == "local (rubrics of appendix B)"
        assert server.asked[0].headers["authorization"] == "Bearer from-the-environment"
        assert server.asked[0].body["model"] == "local"
        assert list(tmp_path.glob("judge/??/*.json"))
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        assert score(LLMJudge("m", server.url, key=KEY, pacing=FAST)) == expected(1)
        assert server.asked[1].headers["authorization"] == f"Bearer {KEY}"


def test_a_server_of_ones_own_needs_no_key_and_openai_does(tmp_path) -> None:
    with serving(by_number) as server:
        assert score(LLMJudge("m", server.url, cache=tmp_path, pacing=FAST)) == expected(1)
    with pytest.raises(InvalidArgument, match="OPENAI_API_KEY"):
        LLMJudge()
    assert LLMJudge(key="k").model == "gpt-4o-mini"


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://there"},
        {"base_url": "http://there:port/v1"},
        {"key": f"{KEY} and more"},
        {"key": f"{KEY}\nX-Other: 1"},
        {"key": f"{KEY}é"},
        {"reasks": -1},
        {"temperature": float("nan")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_the_key(options) -> None:
    with pytest.raises(InvalidArgument) as caught:
        LLMJudge("m", **({"key": KEY} | options))
    assert KEY not in str(caught.value)


def test_a_user_in_the_address_is_not_shown(tmp_path) -> None:
    asks = LLMJudge("m", "http://user:word@127.0.0.1:1/v1?token=abc", key=KEY, cache=tmp_path)
    assert repr(asks) == "LLMJudge('m' at http://127.0.0.1:1/v1)"


def test_without_the_package_the_error_names_the_extra_and_the_cache_still_answers(tmp_path, monkeypatch) -> None:
    with serving(by_number) as server:
        score(judge(server, tmp_path), 2)
        monkeypatch.setitem(sys.modules, "openai", None)
        assert score(judge(server, tmp_path), 2) == expected(2)
        with pytest.raises(MissingExtra, match=r"pip install -e '\.\[judge\]'"):
            score(judge(server, tmp_path), 3)
