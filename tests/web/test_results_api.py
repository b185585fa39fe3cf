"""What the API answers of results folders: their tables, their pages, and the groups of features."""

import csv
import io
import shutil
from contextlib import closing, contextmanager

import pytest

from saeflow.errors import BadFile
from saeflow.web import results
from saeflow.web.results import open_results

from .made_results import write_origins
from .serving import get, serving, until

SEED = "4/res/360"


@pytest.fixture(scope="module")
def with_results(own_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_origins(folder)
    with serving(results=[folder]) as server, server.client() as client:
        client.folder = folder
        yield client


def test_results_are_listed_with_their_tables(with_results):
    [told] = get(with_results, "/api/results")["results"]
    assert (told["id"], told["kind"], told["finished"], told["problem"]) == ("1", "origins", True, None)
    assert told["title"] == "Where active features come from: demo"
    assert [file["name"] for file in told["files"]] == ["made_table.csv", "------escaped.csv"]
    for file in told["files"]:
        found = with_results.get(f"/results/1/files/{file['n']}")
        assert len(found.content) == file["bytes"]
        assert found.headers["content-disposition"] == f'attachment; filename="{file["name"]}"'
        assert found.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(with_results.get("/results/1/files/0").text)))
    assert rows[1][:5] == ["cosine", "made", "4", "RES", "0.5"]
    assert get(with_results, "/api/info")["results"][0]["id"] == "1"


def test_the_page_of_results_is_drawn_anew_and_nothing_of_the_folder_is_sent(with_results):
    (with_results.folder / "index.html").write_text("<script>steal()</script>")
    found = drawn(with_results)
    assert "steal" not in found.text
    assert "Origin of &lt;b&gt;active&lt;/b&gt; features" in found.text
    assert 'href="/results/1/files/0"' in found.text
    assert 'href="tables/' not in found.text
    policy = found.headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy
    assert "'sha256-" in policy
    assert "unsafe-inline" not in policy
    assert not (with_results.folder / "figures").exists()


def drawn(client, path="/results/1"):
    """The page, once it is drawn."""
    until(lambda: client.get(path).status_code != 202, 60)
    found = client.get(path)
    assert found.status_code == 200
    return found


@pytest.fixture
def painting(monkeypatch, tmp_path):
    """What is drawn, without drawing: a list of sources, a process that writes the name of what it draws."""
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        results,
        "_DRAW",
        "import sys, time, pathlib as p; f = p.Path(sys.argv[1]); began = time.monotonic(); time.sleep(0.3);"
        "(f / 'index.html').write_text(f'{began} {time.monotonic()} ' + (f / 'summary.json').read_text())",
    )


def test_while_a_page_is_drawn_its_answer_says_so_and_others_do_not_wait(own_cache, painting, tmp_path):
    write_origins(tmp_path / "a")
    with serving(results=[tmp_path / "a"]) as server, server.client() as client:
        waits = client.get("/results/1")
        assert (waits.status_code, waits.headers["retry-after"]) == (202, "2")
        assert "being drawn" in waits.text
        assert 'http-equiv="refresh"' in waits.text
        assert "style-src 'self'" in waits.headers["content-security-policy"]
        assert get(client, "/api/results")["results"][0]["files"]  # meanwhile
        drawn(client)


def test_pages_are_drawn_once_for_their_content_and_one_at_a_time(painting, tmp_path):
    write_origins(tmp_path / "a")
    write_origins(tmp_path / "b", title="Another")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with painter_of(tmp_path / "a", tmp_path / "b") as (a, b):
        assert a.page() is b.page() is results.WAITING
        until(lambda: b.page() is not results.WAITING, 30)
        (began, ended), (began_b, _) = (map(float, one.page()[0].split(" ")[:2]) for one in (a, b))
        assert began < ended <= began_b
        first = a.page()[0]
    with painter_of(tmp_path / "copy") as [copy]:
        # another start, another folder of the same content: nothing is drawn
        assert copy.page()[0] == first
        summary = tmp_path / "copy" / "summary.json"
        summary.write_text(summary.read_text().replace("Origin of", "Changed"))
        assert copy.page() is results.WAITING
        until(lambda: copy.page() is not results.WAITING, 30)
        assert "Changed" in copy.page()[0]


def test_a_page_that_cannot_be_drawn_is_told_in_a_sentence(painting, monkeypatch, tmp_path):
    write_origins(tmp_path / "a")
    monkeypatch.setattr(results, "_DRAW", "raise OSError('no paint')")
    with painter_of(tmp_path / "a") as [folder]:
        folder.page()
        until(folder._drawing.done, 30)
        with pytest.raises(BadFile, match=r"cannot be drawn \(OSError: no paint\)"):
            folder.page()
        # it is tried again when it is next asked for
        monkeypatch.setattr(results, "_DRAW", "import sys; open(sys.argv[1] + '/index.html', 'w').write('drawn')")
        folder.page()
        until(folder._drawing.done, 30)
        assert folder.page()[0] == "drawn"


def test_what_is_drawn_ends_with_the_server(painting, monkeypatch, tmp_path):
    write_origins(tmp_path / "a")
    monkeypatch.setattr(results, "_DRAW", "import time; time.sleep(600)")
    with painter_of(tmp_path / "a") as [folder]:
        folder.page()
        until(lambda: folder._painter._process is not None)
    assert folder._painter._process.returncode


@contextmanager
def painter_of(*folders):
    with closing(results.Painter()) as painter:
        yield open_results(folders, painter)


def test_results_that_are_not_there_are_not_found(with_results, client):
    for path in ("/results/2", "/results/0", "/results/01", "/results/1/files/9", "/results/2/files/0"):
        assert with_results.get(path).status_code == 404
    assert client.get("/results/1").status_code == 404
    assert get(client, "/api/results") == {"results": []}


def test_a_run_without_tables_says_so(own_cache, tmp_path):
    write_origins(tmp_path)
    (tmp_path / "summary.json").unlink()
    with painter_of(tmp_path) as [folder]:
        assert "no tables yet" in folder.listed().problem
        with pytest.raises(BadFile, match="no tables yet"):
            folder.page()
        with pytest.raises(BadFile, match="manifest"):
            open_results([tmp_path / "nothing"], folder._painter)


def test_groups_are_the_shares_of_the_rows_with_intervals_over_texts(with_results):
    told = get(with_results, "/api/feature", id=SEED)["groups"]
    assert (told["n"], told["texts"], told["method"], told["result"]) == (4, 4, "cosine", "1")
    assert {label: one["share"] for label, one in told["shares"].items()} == {
        "RES": 0.5,
        "RES & MLP": 0.25,
        "nowhere": 0.25,
    }
    for one in told["shares"].values():
        assert 0 <= one["low"] <= one["share"] <= one["high"] <= 1
    once = get(with_results, "/api/feature", id="4/res/7")["groups"]
    assert (once["n"], once["texts"]) == (1, 1)
    assert once["shares"] == {"MLP & ATT": {"share": 1.0, "low": None, "high": None}}
    assert get(with_results, "/api/feature", id="4/res/8")["groups"] is None
    assert get(with_results, "/api/feature", id="4/mlp/7")["groups"] is None


def test_a_graph_knows_the_groups_of_its_nodes(with_results):
    told = get(with_results, "/api/graph", feature=SEED)["groups"]
    assert told == {SEED: {"n": 4, "shares": {"nowhere": 0.25, "RES": 0.5, "RES & MLP": 0.25}}}
    assert get(with_results, "/api/info")["origins"] is True


def test_damaged_rows_cost_the_groups_and_nothing_else(own_cache, tmp_path):
    write_origins(tmp_path)
    (tmp_path / "rows" / "00001.jsonl.gz").write_bytes(b"no gzip")
    with serving(results=[tmp_path]) as server, server.client() as client:
        assert get(client, "/api/feature", id=SEED)["groups"] is None
        assert server.explorer.origins.problem
        drawn(client)
