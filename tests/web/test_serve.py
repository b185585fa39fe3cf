"""`saeflow serve` as a user starts it: a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from saeflow.errors import InvalidArgument
from saeflow.web import PACKAGES
from saeflow.web.server import bound


def start(*arguments, cache, code="from saeflow.cli import main; main()"):
    environment = os.environ | {"SAEFLOW_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def told(process):
    address = process.stdout.readline().strip()
    found = re.fullmatch(r"(http://127\.0\.0\.1:[0-9]+)/\?token=([\w-]{32})", address)
    assert found, address + process.stderr.read()
    return found[1], found[2]


# says at exit which heavy packages the process has imported
WATCHED = """
import atexit, sys
from saeflow.cli import main
heavy = {"torch", "transformers", "numpy", "matplotlib"}
atexit.register(lambda: print("imported:", *sorted(heavy & set(sys.modules))))
main()
"""


def test_it_prints_its_address_draws_without_torch_and_ends_quietly_at_ctrl_c(tmp_path):
    process = start("demo", "--no-browser", cache=tmp_path, code=WATCHED)
    try:
        base, token = told(process)
        with httpx.Client(base_url=base, timeout=30) as browser:
            assert browser.get("/api/info").status_code == 401
            assert browser.get("/", params={"token": token}).status_code == 303
            drawn = browser.get("/api/graph", params={"feature": "4/res/360", "t_res": 0.8})
            assert drawn.json()["counts"]["res"] >= 1
            assert browser.get("/api/info").json()["model_state"] == "idle"
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == ""
    assert token not in out + err
    assert out.splitlines()[-1] == "imported:"


def test_its_address_can_be_read_by_a_program(tmp_path):
    process = start("demo", "--no-browser", "--json", cache=tmp_path)
    try:
        told = json.loads(process.stdout.readline())
        assert told["url"] == f"http://127.0.0.1:{told['port']}/?token={told['token']}"
        headers = {"authorization": f"Bearer {told['token']}"}
        assert httpx.get(f"http://127.0.0.1:{told['port']}/api/model", headers=headers).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_second_start_has_another_token_and_its_own_port(tmp_path):
    first, second = (start("demo", "--no-browser", cache=tmp_path) for _ in range(2))
    try:
        (base, token), (other_base, other_token) = told(first), told(second)
        assert base != other_base
        assert token != other_token
        refused = httpx.get(f"{base}/api/info", headers={"authorization": f"Bearer {other_token}"})
        assert refused.status_code == 401
    finally:
        for process in (first, second):
            process.terminate()
            process.communicate(timeout=30)


def test_a_port_that_is_taken_and_an_atlas_that_is_not_there_are_told_in_a_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgument, match=f"port {port}"), bound(port):
            pass
    process = start("nothing", "--no-browser", cache=tmp_path)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "there is no atlas 'nothing'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "pydantic"])  # typer may need that one too
def test_without_the_extra_it_names_it(tmp_path, name):
    code = f"import sys; sys.modules['{name}'] = None; from saeflow.cli import main; main()"
    process = start("demo", cache=tmp_path, code=code)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert "pip install -e '.[web]'" in err
    assert name in err
    assert "Traceback" not in err


def test_answers_do_not_wait_for_nagle():
    """asyncio turns the delay off only for sockets that name their protocol; with it every answer takes 40 ms more."""
    with bound(0) as own:
        assert own.proto == socket.IPPROTO_TCP
