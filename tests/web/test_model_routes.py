"""Plans, texts and steering over the API; a made-up model writes, so that what is tested is the server."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from saeflow.errors import BadFile, InvalidArgument
from saeflow.flow.scores import Thresholds
from saeflow.ids import FeatureId
from saeflow.steering.growth import grow, targets
from saeflow.steering.plan import SteeringPlan
from saeflow.web.model_thread import MOST_WAITING, ModelThread
from saeflow.web.problems import Busy, split

from .serving import TOKEN, Typist, serving, until

PICKED = ["4/res/360", "2/mlp/7", "3/att/5"]


def post(client, path, **body):
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def refused(client, path, status=422, **body):
    found = client.post(path, json=body)
    assert found.status_code == status, found.text
    told = found.json()
    assert set(told) == {"error", "what_to_do"}
    return f"{told['error']} {told['what_to_do']}"


@pytest.fixture(scope="module")
def plain(own_cache):
    """A server without a model."""
    with serving() as server, server.client() as client:
        yield client


@pytest.fixture(scope="module")
def plan(plain):
    return post(plain, "/api/plan", features=["4/res/360"])["plan"]


def lines(answer):
    return [json.loads(line) for line in answer.iter_lines()]


def test_a_plan_changes_exactly_what_was_picked(plain):
    told = post(plain, "/api/plan", features=PICKED, schedule={"kind": "constant", "s": 2.5})
    made = SteeringPlan.from_json(json.dumps(told["plan"]))
    assert [str(feature) for feature in made.features] == sorted(PICKED)
    assert {step.value for step in made.steps} == {2.5}
    assert {step.why for step in made.steps} == {"picked"}
    assert (made.release, made.dropped) == ("demo", ())
    assert told["span"] == [2, 4]
    assert [(row["feature"], row["layer"], row["value"]) for row in told["table"]] == [
        (str(step.feature), step.feature.layer, step.value) for step in made.steps
    ]
    assert all(row["label"] for row in told["table"])
    assert told["folded"] is False
    assert any("not folded" in note for note in told["notes"])


def test_a_plan_of_starts_is_that_of_their_graphs(plain, served):
    told = post(
        plain, "/api/plan", starts=["4/res/360"], thresholds={"t_res": 0.7, "t_mlp": 0.5, "t_att": 0.5}, parts=["res"]
    )
    graphs = grow([FeatureId.parse("4/res/360")], served.explorer.atlas, thresholds=Thresholds(0.7, mlp=0.5, att=0.5))
    expected = [str(t.feature) for t in targets(graphs) if t.feature.part == "res"]
    assert [row["feature"] for row in told["table"]] == expected
    assert len(expected) > 1


def test_a_theme_names_its_starts_and_no_file(plain, tmp_path):
    told = post(plain, "/api/plan", theme="physics")
    assert told["plan"]["theme"] == "physics"
    assert len(told["table"]) > 3
    mine = tmp_path / "mine.toml"
    mine.write_text('subject = "x"\nrelease = "demo"\nstarts = ["1/res/2"]\n')
    for name in (str(mine), "../demo/physics", "/etc/passwd", "nothing"):
        assert "there is no theme" in refused(plain, "/api/plan", theme=name)


def test_schedules_and_factors_are_those_asked_for(plain):
    told = post(
        plain, "/api/plan", features=["1/res/3", "5/res/3"], schedule={"kind": "linear", "s": 5.0, "s_end": 1.0}
    )
    assert [row["value"] for row in told["table"]] == [5.0, 1.0]
    told = post(plain, "/api/plan", features=["1/res/3"], direction="suppress", r=-0.5)
    assert told["plan"]["steps"][0]["r"] == -0.5
    told = post(plain, "/api/plan", features=["1/res/3", "4/res/3"], reach="cumulative", upto=2)
    assert [row["layer"] for row in told["table"]] == [1]
    assert "'alpha'" in refused(plain, "/api/plan", features=["1/res/3"], schedule={"kind": "constant", "alpha": 1.0})


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "needs features"),
        ({"features": ["1/res/3"], "starts": ["1/res/3"]}, 422, "both given"),
        ({"features": ["1/res/99999"]}, 404, "768 features"),
        ({"features": ["9/res/1"]}, 404, "no dictionary at 9/res"),
        ({"features": ["../1"]}, 422, "pattern"),
        ({"features": ["1/res/3"] * 501}, 422, "at most 500"),
        ({"features": "1/res/3"}, 422, "list"),
        ({"features": ["1/res/3"], "reach": "single"}, 422, "needs a layer"),
        ({"features": ["1/res/3"], "fold": True}, 409, "--model"),
        ({"features": ["1/res/3"], "budget_total": 0.1}, 409, "--model"),
        ({"features": ["1/res/3"], "budget_total": 0}, 422, "greater than 0"),
        ({"starts": ["1/res/3"], "thresholds": {"fdr": 0.01, "t_res": 0.5}}, 422, "replace t_res"),
        ({"features": ["1/res/3"], "parts": []}, 422, "at least 1"),
        ({"features": ["1/res/3"], "parts": ["mlp"]}, 422, "left out"),
        ({"features": ["1/res/3"], "r": "0"}, 422, "number"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_the_reason(plain, body, status, said):
    assert said in refused(plain, "/api/plan", status, **body)


def test_a_file_of_a_plan_is_checked_and_shown(plain, plan):
    assert post(plain, "/api/plan/check", plan=plan) == post(plain, "/api/plan", features=["4/res/360"])
    edited = plan | {"steps": [{"feature": "1/res/3", "strength": 2}], "release": ""}
    told = post(plain, "/api/plan/check", plan=edited)
    assert [row["value"] for row in told["table"]] == [2.0]
    assert any("names no release" in note for note in told["notes"])


def nested(depth):
    made = {}
    for _ in range(depth):
        made = {"a": made}
    return made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "'saeflow-plan'"),
        ({"steps": [{"feature": "1/res/3"}]}, 'no "strength"'),
        ({"steps": [{"feature": "1/res/3", "strength": "2"}]}, "finite number"),
        ({"steps": [{"feature": "1/res/3", "strength": 2, "lable": "x"}]}, "Did you mean"),
        ({"release": "gemma-scope-2b"}, "gemma-scope-2b"),
        ({"steps": [{"feature": f"1/res/{n}", "strength": 1} for n in range(501)]}, "501 features"),
        ({"made_by": nested(40)}, "levels"),
        ({"made_by": nested(600)}, "levels"),
        ({"theme": "\ud800"}, "Unicode"),
        ({"made_by": {"shares": "much", "budget": {"scale": "x"}}}, None),
        ({"made_by": {"shares": {"total": 0.25}, "budget": {"scale": 0.5}}}, None),
    ],
)
def test_a_bad_file_of_a_plan_is_refused_with_its_place(plain, plan, change, said):
    body = json.dumps({"plan": plan | change}).encode()
    found = plain.post("/api/plan/check", content=body, headers={"content-type": "application/json"})
    assert found.status_code == (200 if said is None else 422)
    if said is not None:
        told = found.json()
        assert said in f"{told['error']} {told['what_to_do']}"


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({"shares": {"total": 0.25}}, "All together change 25.0%"),
        ({"shares": {"total": 0.0}}, "None of these features fires"),
        ({"budget": {"scale": 0.5}}, "Weakened to 50.0%"),
        ({"budget": {"scale": 0.99999}}, ""),
        ({"budget": {"scale": 1.0}}, ""),
    ],
)
def test_a_plan_says_how_much_it_changes_and_whether_it_was_weakened(plain, plan, noted, said):
    notes = post(plain, "/api/plan/check", plan=plan | {"made_by": noted})["notes"]
    assert any(said in note for note in notes) if said else not any("Weakened" in note for note in notes)


def test_without_a_model_what_needs_one_says_how_to_name_it(plain, plan):
    assert plain.get("/api/model").json() == {"model_state": "none", "model_error": None}
    assert post(plain, "/api/model") == {"model_state": "none", "model_error": None}
    for path, body in (("/api/steer", {"plan": plan, "prompt": "x"}), ("/api/text", {"text": "x"})):
        assert "--model" in refused(plain, path, 409, **body)


def test_steering_streams_both_sides_line_by_line(client, plan):
    with client.stream("POST", "/api/steer", json={"plan": plan, "prompt": "I think", "new_tokens": 3}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        told = lines(answer)
    assert [line["type"] for line in told] == ["state", "state", *["token"] * 6, "done"]
    assert [line["side"] for line in told if line["type"] == "token"] == ["steered", "plain"] * 3


def test_what_cannot_be_steered_is_refused_before_the_stream(client, plan):
    bad = [
        ({"plan": plan, "prompt": ""}, "at least 1"),
        ({"plan": plan, "prompt": "x" * 2001}, "2000"),
        ({"plan": plan, "prompt": "x", "samples": 9}, "8"),
        ({"plan": plan, "prompt": "x", "new_tokens": 201}, "200"),
        ({"plan": plan, "prompt": "x", "temperature": -1}, "0"),
        ({"plan": plan, "prompt": "x", "theme": "/etc/passwd"}, "no theme"),
        ({"plan": plan | {"steps": []}, "prompt": "x"}, "no feature"),
        ({"plan": {}, "prompt": "x"}, "saeflow-plan"),
    ]
    for body, said in bad:
        assert said in refused(client, "/api/steer", **body)


def test_a_client_that_leaves_stops_the_writing_between_two_tokens(own_cache, plan):
    typist = Typist(pause=0.01)
    with serving(worker=typist) as served, served.client() as client:
        asked = {"plan": plan, "prompt": "x", "new_tokens": 200}
        with client.stream("POST", "/api/steer", json=asked) as answer:
            heard = answer.iter_lines()
            while json.loads(next(heard))["type"] != "token":
                pass
        until(lambda: typist.stopped == 1)
        assert typist.words < 150
        until(lambda: served.explorer.model.pending == 0)
        with client.stream("POST", "/api/steer", json=asked | {"new_tokens": 2}) as answer:
            assert lines(answer)[-1]["type"] == "done"


def test_a_client_that_leaves_while_it_waits_is_never_written_for(own_cache, plan):
    typist = Typist()
    typist.gate.clear()
    asked = {"plan": plan, "prompt": "first", "new_tokens": 2}
    with serving(worker=typist) as served, served.client() as client:
        with client.stream("POST", "/api/steer", json=asked) as first:
            until(lambda: typist.asked)
            with client.stream("POST", "/api/steer", json=asked | {"prompt": "second"}) as second:
                heard = second.iter_lines()  # kept: the connection closes with it
                assert json.loads(next(heard))["type"] == "state"
                assert served.explorer.model.pending == 2
            until(lambda: len(served.server.server_state.tasks) == 1)
            typist.gate.set()
            assert lines(first)[-1]["type"] == "done"
        until(lambda: served.explorer.model.pending == 0)
    assert [one.prompt for one in typist.asked] == ["first"]


def test_a_client_that_does_not_read_holds_the_writer_and_no_memory(own_cache, plan, monkeypatch):
    """The writer waits at a full queue, and is let go when the client leaves."""
    from saeflow.web import streams

    monkeypatch.setattr(streams, "MOST_LINES", 2)
    typist = Typist()
    with serving(worker=typist) as served, served.client() as client:
        slow = threading.Event()

        async def held(self, job, *first):
            yield b"{}\n"
            import asyncio

            while not slow.is_set():
                await asyncio.sleep(0.01)

        monkeypatch.setattr(streams.Outlet, "lines", held)
        with client.stream("POST", "/api/steer", json={"plan": plan, "prompt": "x", "new_tokens": 200}) as answer:
            heard = answer.iter_lines()  # kept: the connection closes with it
            next(heard)
            until(lambda: typist.asked)
            assert typist.words <= 1
        until(lambda: typist.stopped == 1)
        slow.set()
        assert typist.words <= 1


def test_one_text_is_written_at_a_time_and_a_few_wait(own_cache, plan):
    typist = Typist(pause=0.02)
    with serving(worker=typist) as served, served.client() as client, ThreadPoolExecutor(8) as many:

        def ask(_):
            with client.stream("POST", "/api/steer", json={"plan": plan, "prompt": "x", "new_tokens": 20}) as answer:
                answer.read()
                return answer.status_code, answer.headers.get("retry-after")

        found = list(many.map(ask, range(8)))
        assert found.count((200, None)) == 1 + MOST_WAITING
        assert found.count((429, "2")) == 7 - MOST_WAITING
        assert client.get("/api/info").status_code == 200


def test_a_failure_while_writing_is_a_line_of_the_stream(own_cache, plan):
    class Broken(Typist):
        def steer(self, *_):
            raise RuntimeError("broken in the middle")

    class Refusing(Typist):
        def steer(self, *_):
            raise InvalidArgument("the plan does not fit. Make another.")

    for worker, said in ((Broken(), "broken in the middle"), (Refusing(), "the plan does not fit.")):
        with serving(worker=worker) as served, served.client() as client:
            with client.stream("POST", "/api/steer", json={"plan": plan, "prompt": "x"}) as answer:
                last = lines(answer)[-1]
            assert last["type"] == "error"
            assert said in last["error"]
            assert last["what_to_do"]


def test_a_model_that_does_not_load_is_told_and_tried_again(own_cache, plan):
    tries = []

    def load():
        tries.append(1)
        if len(tries) == 1:
            raise BadFile("model.bin is torn. Fetch it again.")
        return Typist()

    with serving(worker=Typist()) as served, served.client() as client:
        served.explorer.model = ModelThread(load)
        assert client.get("/api/model").json()["model_state"] == "idle"
        assert post(client, "/api/model")["model_state"] in ("loading", "failed")
        until(lambda: client.get("/api/model").json()["model_state"] == "failed")
        assert client.get("/api/info").json()["model_error"] == "model.bin is torn. Fetch it again."
        assert post(client, "/api/text", text="one two", sites=["4/res"])["tokens"][1]["text"] == "two"
        assert client.get("/api/model").json() == {"model_state": "ready", "model_error": None}
        assert tries == [1, 1]


def test_a_text_is_read_at_the_sites_asked_for(client):
    told = post(client, "/api/text", text="one two three", sites=["4/res", "1/mlp", "4/res"])
    assert set(told["active"]) == {"4/res", "1/mlp"}
    assert [len(row) for row in told["active"].values()] == [3, 3]
    assert len(post(client, "/api/text", text="one")["active"]) == 18
    assert "no dictionary at 77/res" in refused(client, "/api/text", 404, text="one", sites=["77/res"])
    for body in (
        {"text": ""},
        {"text": "x" * 4001},
        {"text": "x", "top": 21},
        {"text": "x", "sites": ["4"]},
        {"text": 1},
    ):
        refused(client, "/api/text", **body)


def test_a_feature_is_told_before_and_after_the_removal_of_its_predecessors(client, plain):
    told = post(client, "/api/deactivate", text="one two", token=1, feature="4/res/72")
    assert told["before"] == 2.0
    [removal] = told["removals"]
    assert removal == {
        "removed": "RES",
        "features": ["3/res/1"],
        "after": 0.5,
        "change": 0.75,
        "control": ["3/res/2"],
        "control_change": None,
    }
    assert "no token 9" in refused(client, "/api/deactivate", text="one two", token=9, feature="4/res/72")
    assert "4/res/9999" in refused(client, "/api/deactivate", 404, text="one two", token=1, feature="4/res/9999")
    for bad in ({"token": -1}, {"text": ""}, {"feature": "4/res"}):
        refused(client, "/api/deactivate", **{"text": "one two", "token": 1, "feature": "4/res/72"} | bad)
    assert plain.post("/api/deactivate", json={"text": "x", "token": 0, "feature": "4/res/72"}).status_code == 409


def test_what_happened_at_a_token_is_a_figure_with_both_numbers_of_each_edge(client, plain):
    asked = {"text": "one two", "token": 1, "effect": 0.2, "groups": {"cats": ["0/res/3@1"]}}
    answer = client.post("/api/trace", json=asked)
    assert answer.status_code == 200
    told = answer.json()
    assert [node["kind"] for node in told["data"]["nodes"]] == ["feature", "feature", "feature", "logit"]
    [edge] = [edge for edge in told["data"]["edges"] if (edge["parent"], edge["child"]) == ("0/res/3", "1/res/5")]
    assert (edge["effect"], edge["control"], edge["score"], edge["named"]) == (0.6, 0.05, 0.8, True)
    assert told["svg"].startswith("<svg")
    assert told["facts"]["nodes"] == "3 features, 1 logit"
    assert client.post("/api/trace", json=asked | {"effect": 9}).status_code == 422
    wrong = [{"token": -1}, {"effect": -0.1}, {"before": 9}, {"cosine": 2}, {"groups": []}, {"groups": {"a": 1}}]
    for bad in wrong:
        assert client.post("/api/trace", json=asked | bad).status_code == 422
    assert plain.post("/api/trace", json={"text": "x", "token": 0}).status_code == 409


@pytest.mark.parametrize("form", ["html", "json", "graphml", "svg", "png", "dot", "mermaid", "circuit-tracer"])
def test_what_happened_at_a_token_is_a_file(client, form):
    answer = client.post("/api/trace/export", json={"text": "one two", "token": 1, "format": form})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith('attachment; filename="')
    assert "-token-1." in answer.headers["content-disposition"]
    assert answer.content


def test_the_server_that_stops_ends_its_streams(own_cache, plan):
    typist = Typist(pause=0.02)
    with serving(worker=typist) as served, served.client() as client:
        with client.stream("POST", "/api/steer", json={"plan": plan, "prompt": "x", "new_tokens": 200}) as answer:
            heard = answer.iter_lines()
            next(heard)
            served.server.should_exit = True
            told = [json.loads(line) for line in heard]
        assert told[-1]["type"] == "error"
        assert "stops" in told[-1]["error"]
        assert typist.stopped == 1


def test_a_closed_thread_takes_no_job_and_drops_those_that_wait():
    began, go_on = threading.Event(), threading.Event()
    thread = ModelThread(Typist)
    first = thread.submit(lambda _: began.set() or go_on.wait(5))
    assert began.wait(5)
    second = thread.submit(lambda _: 1)
    thread.closed.set()
    go_on.set()
    thread.close()
    assert first.result() is True
    assert second.cancelled()
    with pytest.raises(Busy):
        thread.submit(lambda _: 1)


def test_a_message_is_told_in_two_parts():
    told = split("4/res/9 is 0.5, not there. It has e.g. two. Give another one.", 422)
    assert (told.error, told.what_to_do) == ("4/res/9 is 0.5, not there. It has e.g. two.", "Give another one.")
    assert split("one sentence", 404).what_to_do.startswith("Search")
    assert TOKEN not in told.error
