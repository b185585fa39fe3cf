"""When requests go out, and what counts as a failed try."""

import time
from email.utils import formatdate

import pytest

from saeflow.errors import InvalidArgument, Unreachable
from saeflow.llm.endpoint import Endpoint, Failure, Gate, Pacing, Secret
from saeflow.patience import retry_after

from .asking import by_number, judge, score
from .server import KEY, serving

pytest.importorskip("openai")


@pytest.mark.parametrize("moves", [True, False])
def test_refusals_for_being_busy_count_only_while_nobody_is_answered(moves, monkeypatch) -> None:
    endpoint = Endpoint(
        "m",
        base_url="http://127.0.0.1:1",
        secret=Secret(KEY),
        temperature=0,
        seed=0,
        pacing=Pacing(retries=2, backoff=0),
    )
    replies = [Failure("it is busy", busy=True)] * 10 + ["4"]

    def once(messages, seed):
        if moves:
            endpoint.count("answered")  # by another thread, meanwhile
        return replies.pop(0)

    monkeypatch.setattr(endpoint, "_once", once)
    with endpoint:
        if moves:
            assert endpoint.ask([{"role": "user", "content": "?"}]) == "4"
        else:
            with pytest.raises(Unreachable, match="in 3 tries"):
                endpoint.ask([{"role": "user", "content": "?"}])


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"retries": -1}, {"per_minute": 0}, {"timeout": 0}, {"longest": -1}, {"backoff": -1}]
)
def test_pacing_that_never_asks_is_refused(wrong) -> None:
    with pytest.raises(InvalidArgument):
        Pacing(**wrong)


def test_a_rate_spaces_requests_evenly(tmp_path) -> None:
    with serving(by_number) as server:
        start = time.monotonic()
        score(judge(server, tmp_path, pacing=Pacing(per_minute=1200)), 6)
        assert time.monotonic() - start >= 0.25  # five spaces of 50 ms
    gate, start, turns = Gate(per_minute=3000), time.monotonic(), []
    for _ in range(5):
        assert gate.enter()
        turns.append(time.monotonic() - start)
    assert all(turn >= 0.02 * number for number, turn in enumerate(turns))


def test_a_stopped_gate_wakes_who_waits() -> None:
    gate = Gate(per_minute=1)
    assert gate.enter()
    gate.stop()
    start = time.monotonic()
    assert not gate.enter()
    assert not gate.sleep(60)
    assert time.monotonic() - start < 5


def test_waits_double_up_to_the_longest_and_are_a_function_of_what_is_asked() -> None:
    pacing = Pacing(backoff=1.0, longest=10.0)
    for attempt in range(6):
        whole = min(10.0, 2.0**attempt)
        delays = {pacing.delay(attempt, f"text {n}") for n in range(50)}
        assert all(min(10.0, 2.0**attempt / 2) <= delay <= whole for delay in delays)
        assert pacing.delay(attempt, "text 7") == pacing.delay(attempt, "text 7")
        assert attempt >= 4 or len(delays) > 10
    assert pacing.delay(10_000, "text") == 10.0


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "2500", "retry-after": "9"}) == 2.5
    assert retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) == pytest.approx(60, abs=5)
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0
    for told in ({}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "nan"}):
        assert retry_after(told) is None
