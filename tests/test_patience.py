"""Limits for what a server does: the time of a call, the bytes and the pace of an answer, and keys in what it says."""

import threading
import time

import pytest

from saeflow import patience
from saeflow.patience import Meter, TooLong, masked, within


def test_a_call_that_does_not_end_is_left_and_what_it_brings_late_is_closed():
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])
    go_on, closed = threading.Event(), threading.Event()

    class Answer:
        def close(self):
            closed.set()

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        within(0.05, lambda: go_on.wait(10) and Answer())
    go_on.set()
    assert closed.wait(5)


def test_an_answer_is_measured_in_bytes_and_in_time():
    now = [0.0]
    assert Meter(5).whole([b"ab", b"cde"]) == b"abcde"
    with pytest.raises(TooLong, match="more than 5 bytes"):
        Meter(5).whole([b"ab", b"cdef"])
    meter = Meter(1 << 30, seconds=1000, clock=lambda: now[0])
    for _ in range(20):  # 1 KB a second and more
        now[0] += 30
        meter.add(patience.LEAST)
    now[0] += 61
    meter.add(1)
    now[0] += 61
    with pytest.raises(TimeoutError, match="10 bytes in 61 s"):
        meter.add(10)
    meter = Meter(1 << 30, seconds=100, clock=lambda: now[0])
    now[0] += 101
    with pytest.raises(TimeoutError, match="no whole answer within 100 s"):
        meter.add(1 << 20)


KEY = "sk-1/ä+b"
FORMS = [
    "sk-1/ä+b",
    "sk-1%2F%C3%A4%2Bb",
    "%73%6b%2d%31%2f%c3%a4%2b%62",
    "sk-1%252F%25C3%25A4%252Bb",
    "sk-1\\u002f\\u00E4+b",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_masked_however_it_is_written(form):
    assert masked(f"a={form}&b", KEY) == "a=[key]&b"


def test_what_is_no_key_is_left():
    assert masked("there is none of SK-1/ä+b", KEY, "none", "") == "there is none of SK-1/ä+b"
    began = time.monotonic()
    assert masked("s" * (1 << 20), KEY) == "s" * (1 << 20)
    assert time.monotonic() - began < 5
