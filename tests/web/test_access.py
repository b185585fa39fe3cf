"""Who is let in, and what is refused before a route sees it: on a real server, with raw bytes where needed."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest

from saeflow.web.access import HEADERS, Limits, cookie_name

from .serving import TOKEN, serving, until

GRAPH = "/api/graph?feature=4/res/360"
ROUTES = ("/", "/static/app.js", "/api/info", GRAPH, "/api/openapi.json", "/results/1", "/nothing", "/api/model")


def raw(served, data, *, wait=10.0):
    """Send bytes, and read what comes until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=wait) as line:
        line.sendall(data)
        got = b""
        while b"\r\n\r\n" not in got:
            more = line.recv(65536)
            if not more:
                break
            got += more
    return got


def status(answer):
    return int(answer.split(b" ", 2)[1])


def request(path, *lines, host=None, port=0, method="GET"):
    told = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", *lines]
    return "\r\n".join([*told, "", ""]).encode("latin-1")


def problem(answer):
    told = answer.json()
    assert set(told) == {"error", "what_to_do"}
    assert all(re.search(r"\w", text) for text in told.values())
    return told


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"cookie": f"saeflow-1={TOKEN}"},
        {"cookie": f"token={TOKEN}"},
    ],
)
def test_without_the_token_nothing_is_told(served, path, headers):
    with httpx.Client(base_url=served.base, headers=headers) as stranger:
        found = stranger.get(path)
    assert found.status_code == 401
    assert "saeflow serve" in problem(found)["what_to_do"]
    assert found.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in found.text


def test_the_address_trades_its_token_for_a_cookie_and_hides_it(served):
    with httpx.Client(base_url=served.base) as browser:
        entered = browser.get("/", params={"token": TOKEN})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        assert cookie.startswith(f"{cookie_name(served.port)}={TOKEN};")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert browser.get("/api/info").status_code == 200


@pytest.mark.parametrize("told", ["wrong", "", TOKEN + "x", "\x00", "é"])
def test_the_address_with_another_token_gives_no_cookie(served, told):
    with httpx.Client(base_url=served.base) as browser:
        refused = browser.get("/", params={"token": told})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    problem(refused)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost", ""])
@pytest.mark.parametrize("path", ["/api/info", f"/?token={TOKEN}"])
def test_a_foreign_origin_is_refused_even_with_the_token(served, origin, path):
    with served.client(origin=origin) as page:
        found = page.get(path)
    assert found.status_code == 403
    assert "set-cookie" not in found.headers
    assert not [name for name in found.headers if name.startswith("access-control")]
    problem(found)


def test_the_own_origin_is_not_foreign(served):
    for name in ("127.0.0.1", "localhost"):
        with served.client(origin=f"http://{name}:{served.port}") as page:
            assert page.get("/api/info").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "[::1]:80", "x:80"])
def test_another_host_name_is_refused(served, host):
    for path in ("/api/info", f"/?token={TOKEN}"):
        answer = raw(served, request(path, f"Authorization: Bearer {TOKEN}", host=host))
        assert status(answer) == 421
        assert b"set-cookie" not in answer.lower()


def test_a_page_of_another_port_may_link_here_and_not_ask(served):
    foreign = {"sec-fetch-site": "same-site"}
    with served.client(**foreign, **{"sec-fetch-mode": "no-cors"}) as page:
        assert page.get(GRAPH).status_code == 403
    with served.client(**foreign, **{"sec-fetch-mode": "navigate"}) as page:
        assert page.get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/report/../../errors.py",
        "/static/....//app.py",
        "/static/%00",
        "/static/index.html%00.css",
        "/static/%5c..%5capp.py",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/results/..",
        "/results/%2e%2e",
        "/results/%2fetc%2fpasswd",
        "/results/1%00",
        "/results/%00",
        "/results/../files/0",
        "/results/1/files/../../manifest.json",
        "/results/1/files/%2e%2e%2fmanifest.json",
        "/results/1/files/-1",
        "/results/1/files/%00",
        "/results/1/files/0x0",
    ],
)
def test_no_path_leaves_what_is_served(served, path):
    answer = raw(served, request(path, f"Authorization: Bearer {TOKEN}", "Connection: close", port=served.port))
    assert status(answer) == 404
    assert b"root:" not in answer
    assert b"import" not in answer


@pytest.mark.parametrize(
    "name",
    [
        "../4/res/1",
        "4/res/1/../2",
        "/etc/passwd",
        "4/res/1\x00",
        "4\\res\\1",
        "４/res/1",
        "4/res/-1",
        "4/res/1e3",
        "4/res/01",
        " 4/res/1",
        "4/res/1 ",
        "4/RES/1",
        "4/res/9999999999",
        "99999/res/1",
        "4/res",
        "a" * 5000,
        "",
        "%2e%2e/res/1",
        "4/res/1\n",
    ],
)
def test_ids_that_are_none_are_refused_with_a_sentence(client, name):
    for path, key in (("/api/graph", "feature"), ("/api/feature", "id"), ("/api/export", "feature")):
        found = client.get(path, params={key: name})
        assert found.status_code == 422
        assert len(problem(found)["error"]) < 400


def test_ids_of_features_that_are_not_there_are_not_found(client):
    for name in ("4/res/99999", "77/res/1", "9999/att/999999999"):
        found = client.get("/api/graph", params={"feature": name})
        assert found.status_code == 404
        assert name.rpartition("/")[0] in problem(found)["error"]


def test_a_body_of_50_mb_is_refused_whether_its_length_is_told_or_not(served, client):
    chunk = b"x" * 65_536

    def parts():
        for _ in range(800):
            yield chunk

    for kind in ({"content-length": str(800 * len(chunk))}, {}):
        headers = {"content-type": "application/json", **kind}
        try:
            found = client.post("/api/plan", content=parts(), headers=headers)
        except httpx.WriteError:  # the server may hang up before all is sent
            continue
        assert found.status_code == 413
        assert "256000 bytes" in problem(found)["error"]
    assert client.get("/api/info").status_code == 200


def test_the_answer_to_too_long_a_body_comes_before_the_body(served):
    head = request(
        "/api/plan",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json",
        "Content-Length: 50000000",
        port=served.port,
        method="POST",
    )
    assert status(raw(served, head)) == 413  # none of the body was sent
    unread = head.replace(b"50000000", b"12ab")
    assert status(raw(served, unread)) == 400


def test_the_count_of_a_streamed_body_stops_at_the_limit(served):
    head = request(
        "/api/plan",
        f"Authorization: Bearer {TOKEN}",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        port=served.port,
        method="POST",
    )
    body = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    assert status(raw(served, head + 4 * body)) == 413  # the fifth part, and the end, never come


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx"],
)
def test_a_post_must_be_json(client, kind):
    found = client.post("/api/plan", content=b"{}", headers={"content-type": kind})
    assert found.status_code == 415
    problem(found)


def test_what_is_no_json_is_told_so(client):
    for body in (b"", b"{", b"[1", b"\xff\xfe", b'{"features": [}', b"[" * 100_000):
        found = client.post("/api/plan", content=body, headers={"content-type": "application/json"})
        assert found.status_code in (400, 422)
        problem(found)


def test_a_long_query_is_refused(client):
    found = client.get("/api/search", params={"q": "a" * 9_000})
    assert found.status_code == 414
    problem(found)


def test_200_graphs_at_once_are_all_answered(served):
    """A connection each, all sent before the first is read."""
    lines = (f"Authorization: Bearer {TOKEN}", "Connection: close")
    with ExitStack() as stack:
        asked = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)) for _ in range(200)
        ]
        for n, line in enumerate(asked):
            path = f"/api/graph?feature=4/res/{n}" if n % 2 else "/api/search?q=4/res"
            line.sendall(request(path, *lines, port=served.port))
        assert {status(line.makefile("rb").readline()) for line in asked} == {200}


@pytest.fixture
def held(own_cache, monkeypatch):
    """A server of two requests at work and one that waits, whose searches wait until they are let go."""
    with serving(limits=Limits(at_work=2, waiting=1, turn=0.5)) as served, ThreadPoolExecutor(3) as many:
        served.began, served.go_on = threading.Semaphore(0), threading.Event()
        served.access = served.server.config.app

        def find(*_):
            served.began.release()
            assert served.go_on.wait(10)
            return []

        monkeypatch.setattr(served.explorer.finder, "find", find)
        with served.client() as client:
            served.at_work = [many.submit(client.get, "/api/search?q=force") for _ in range(2)]
            assert all(served.began.acquire(timeout=10) for _ in served.at_work)
            yield served
            served.go_on.set()
            assert [one.result().status_code for one in served.at_work] == [200, 200]
            assert client.get("/api/info").status_code == 200


def test_beyond_its_limits_the_server_says_when_to_ask_again(held):
    held.access._limits = replace(held.access._limits, turn=20)
    with held.client() as client, ThreadPoolExecutor(1) as other:
        waits = other.submit(client.get, "/api/search?q=force")
        until(lambda: held.access._waiting == 1)
        refused = client.get("/api/info")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "2 requests are at work and 1 wait" in problem(refused)["error"]
        held.go_on.set()
        assert waits.result().status_code == 200


def test_a_request_does_not_wait_for_ever(held):
    with held.client() as client:
        refused = client.get("/api/info")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert held.access._waiting == 0


def test_a_client_that_leaves_while_it_waits_gives_up_its_place(held):
    held.access._limits = replace(held.access._limits, turn=20)
    ask = request("/api/search?q=force", f"Authorization: Bearer {TOKEN}", port=held.port)
    with socket.create_connection(("127.0.0.1", held.port), timeout=10) as line:
        line.sendall(ask)
        until(lambda: held.access._waiting == 1)
    until(lambda: held.access._waiting == 0)
    held.go_on.set()
    assert not held.began.acquire(timeout=0.3), "it was worked for nobody"


def test_a_body_that_does_not_come_is_not_waited_for(own_cache):
    with serving(limits=Limits(seconds=0.2)) as served:
        head = request(
            "/api/plan",
            f"Authorization: Bearer {TOKEN}",
            "Content-Type: application/json",
            "Content-Length: 10",
            port=served.port,
            method="POST",
        )
        assert status(raw(served, head + b"{")) == 408


def test_every_answer_has_the_headers_of_safety(served, client):
    with httpx.Client(base_url=served.base) as stranger:
        answers = [client.get(path) for path in ROUTES]
        answers += [stranger.get("/"), client.get("/api/graph"), client.post("/api/graph"), client.get("/?token=x")]
    for one in answers:
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in one.headers["content-security-policy"]
        assert "server" not in one.headers
        if one.request.url.path.startswith("/api"):
            assert one.headers["cache-control"] == "no-store"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_other_methods_are_refused_and_named(client):
    for method, path in (
        ("DELETE", "/api/info"),
        ("PUT", "/api/plan"),
        ("POST", "/api/graph"),
        ("PATCH", "/results/1"),
    ):
        found = client.request(method, path, json={})
        assert found.status_code == 405
        assert found.headers["allow"]
        assert method in problem(found)["error"]


def test_a_websocket_is_refused(served):
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGVzdA==")
    answer = raw(served, request("/api/info", *lines, port=served.port))
    assert status(answer) in (400, 401, 403, 426)


def test_the_server_listens_on_the_loopback_interface_alone(served):
    sockets = [one.getsockname()[0] for server in served.server.servers for one in server.sockets]
    assert sockets == ["127.0.0.1"]


def test_unknown_parameters_are_refused(client):
    for path in ("/api/info?x=1", f"{GRAPH}&t_rse=0.1", "/api/search?q=a&sort=1", "/api/results?y="):
        found = client.get(path)
        assert found.status_code == 422
        assert "not permitted" in problem(found)["error"]
    found = client.post("/api/plan", json={"feature": ["4/res/1"]})
    assert found.status_code == 422


def test_a_failure_inside_is_told_without_its_inside(served, client, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(served.explorer.finder, "find", fail)
    found = client.get("/api/search?q=force")
    assert found.status_code == 500
    assert "secret" not in json.dumps(problem(found))
    until(lambda: "secret of the inside" in caplog.text)
