"""Results folders: what is written, how a killed run goes on, what is refused."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from saeflow.errors import BadFile, InvalidArgument
from saeflow.experiments.results import Results, RunRecord, RunRequest, SummaryTable, significant, versions

UNITS = [{"dataset": "a", "text": n, "content": f"text\u2028{n}", "positions": [1, 2]} for n in range(6)]


def request(**changes):
    told = {
        "experiment": "origins",
        "release": "demo",
        "model": "demo",
        "seed": 0,
        "datasets": ("a",),
        "atlases": {"cosine": "sha 1"},
        "arguments": {"texts": 6, "layers": [1, 2], "r": (0.0, 1.0)},
    }
    return RunRequest(**(told | changes))


def start(folder, **changes):
    return Results.start(folder, request(**changes), lambda: UNITS, {"saeflow": "1"})


def work(unit):
    return [{"text": unit["text"], "row": row, "value": unit["text"] / 3} for row in range(unit["text"])]


def test_a_request_names_what_another_asks_otherwise() -> None:
    first = RunRequest("origins", "demo", "demo", 0, ("a",), {"cosine": "x"}, {"r": (0.0, 1.0), "texts": 5})
    same = RunRequest("origins", "demo", "demo", 0, ("a",), {"cosine": "x"}, {"texts": 5, "r": [0.0, 1.0]})
    assert first.differences(same) == []  # as it comes back from JSON
    other = RunRequest("origins", "demo", "demo", 0, ("a", "b"), {}, {"texts": 5, "r": [0.0]})
    assert first.differences(other) == [
        'atlas cosine is "x" there and null here',
        'datasets is ["a"] there and ["a", "b"] here',
        "r is [0.0, 1.0] there and [0.0] here",
    ]


def test_rows_come_back_as_they_were_written_unit_by_unit(tmp_path) -> None:
    results = start(tmp_path).run(work)
    assert list(results.rows()) == [row for unit in UNITS for row in work(unit)]
    assert results.columns("row", "missing")["row"] == [row["row"] for row in results.rows()]
    assert set(results.columns("missing")["missing"]) == {None}
    assert results.units() == UNITS


def test_the_manifest_says_what_was_asked_and_when_it_ended(tmp_path) -> None:
    results = start(tmp_path)
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert told["finished"] is None
    assert (told["experiment"], told["datasets"], told["atlases"]) == ("origins", ["a"], {"cosine": "sha 1"})
    results.run(work)
    record = Results.open(tmp_path).record
    assert record.finished >= record.started
    assert (record.done, record.total) == (6, 6)
    assert RunRecord.from_json(record.to_json()) == record


def test_a_unit_that_is_done_is_not_done_again_and_the_rest_is(tmp_path) -> None:
    done = []

    def failing(unit):
        if unit["text"] == 3:
            raise KeyboardInterrupt
        done.append(unit["text"])
        return work(unit)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path).run(failing)
    assert (Results.open(tmp_path).done, Results.open(tmp_path).record.finished) == (3, None)
    resumed = Results.start(tmp_path, request(), pytest.fail, {"saeflow": "2"})
    resumed.run(lambda unit: done.append(unit["text"]) or work(unit))
    assert done == [0, 1, 2, 3, 4, 5]
    assert list(resumed.rows()) == [row for unit in UNITS for row in work(unit)]


def test_progress_counts_units_and_ends_at_all_of_them(tmp_path) -> None:
    told = []
    start(tmp_path).run(work, lambda done, total, what: told.append((done, total, what)))
    assert told[0] == (0, 6, "a 0")
    assert told[-1] == (6, 6, "done")


def test_what_an_earlier_run_did_is_counted_from_the_first_report(tmp_path) -> None:
    stopped = start(tmp_path)
    stopped.run(work)
    for unit in (1, 4):
        stopped.shard(unit).unlink()
    told = []
    start(tmp_path).run(work, lambda done, total, what: told.append((done, what)))
    assert told == [(4, "a 1"), (5, "a 4"), (6, "done")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"arguments": {"texts": 7, "layers": [1, 2], "r": (0.0, 1.0)}}, "texts is 6 there and 7 here"),
        ({"arguments": {"texts": 6, "r": (0.0, 1.0)}}, r"layers is \[1, 2\] there and null here"),
        ({"atlases": {"cosine": "sha 2"}}, "atlas cosine is"),
        ({"datasets": ("a", "b")}, "datasets is"),
        ({"experiment": "deactivation"}, "results of another experiment, origins of .*, and this is deactivation"),
    ],
)
def test_a_run_with_other_arguments_is_refused_naming_what_differs(tmp_path, changes, words) -> None:
    start(tmp_path)
    with pytest.raises(InvalidArgument, match=words):
        start(tmp_path, **changes)
    start(tmp_path)


def test_folders_that_cannot_be_used_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match="no text"):
        Results.start(tmp_path / "empty", request(), list, {})
    (tmp_path / "other" / "rows").mkdir(parents=True)
    (tmp_path / "other" / "rows" / "00000.jsonl.gz").touch()
    with pytest.raises(InvalidArgument, match="without a manifest"):
        start(tmp_path / "other")
    with pytest.raises(BadFile, match="manifest"):
        Results.open(tmp_path / "nothing")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BadFile, match="manifest"):
        Results.open(tmp_path)
    with pytest.raises(BadFile, match="summary"):
        start(tmp_path / "new").tables()


def test_a_damaged_shard_is_named(tmp_path) -> None:
    results = start(tmp_path).run(work)
    whole = results.shard(2).read_bytes()
    for damaged in (whole[:-9], b"", gzip.compress(b'{"a": 1}\n{"a": \n')):
        results.shard(2).write_bytes(damaged)
        with pytest.raises(BadFile, match="00002"):
            list(results.rows())


def test_tables_come_back_as_they_were_written_and_as_csv(tmp_path) -> None:
    results = start(tmp_path)
    rows = [("a, b", np.int64(3), np.float32(0.5), None), ("c", 4, float("nan"), True)]
    note = "A note, of 1.5 lines. `share`: of `c`. `absent` is no column. `n` of `d` neither. The end."
    table = SummaryTable.of("one", "One", "fig. 5", note, "name, n, share, more", rows)
    assert table.note == "A note, of 1.5 lines. `share`: of `c`. The end.", "what the table does not have is not named"
    assert table.rows == (("a, b", 3, 0.5, None), ("c", 4, None, True))
    assert table.frame()["n"].tolist() == [3, 4]
    assert table.dicts()[0]["name"] == "a, b"
    results.write_tables([table])
    assert Results.open(tmp_path).tables() == {"one": table}
    written = (tmp_path / "tables" / "one.csv").read_text()
    assert written == 'name,n,share,more\n"a, b",3,0.5,\nc,4,,True\n'
    with pytest.raises(InvalidArgument, match="1 cells for 2 columns"):
        SummaryTable.of("bad", "", "", "", "a, b", [(1,)])


@pytest.mark.parametrize("value", [0.0, 1e-12, 1 / 3, 123456.789, -2e-7])
def test_rounded_numbers_are_close_and_0_only_when_they_were(value) -> None:
    assert significant(value) == pytest.approx(value, rel=1e-5)
    assert (significant(value) == 0) == (value == 0)


def test_versions_name_the_libraries_of_the_arithmetic() -> None:
    assert {"saeflow", "python", "numpy", "torch", "transformers"} <= set(versions())


KILLED = """
import sys, time
from pathlib import Path
from saeflow.experiments.results import Results
from tests.experiments.killed_run import run

run(Path(sys.argv[1]), slow=True)
"""


def test_a_killed_deactivation_run_ends_with_the_bytes_of_one_that_was_not(tmp_path) -> None:
    from .killed_run import run

    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], cwd=root, env=environment, text=True
    )
    rows = tmp_path / "killed" / "rows"
    give_up = time.monotonic() + 240
    while len(list(rows.glob("0*.gz"))) < 3:
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 3 <= Results.open(tmp_path / "killed").done < 8
    resumed, whole = run(tmp_path / "killed"), run(tmp_path / "whole")
    for folder in ("rows", "tables"):
        names = sorted(path.name for path in (whole.folder / folder).iterdir())
        assert names == sorted(path.name for path in (resumed.folder / folder).iterdir())
        for name in names:
            assert (whole.folder / folder / name).read_bytes() == (resumed.folder / folder / name).read_bytes()
    assert (whole.folder / "summary.json").read_bytes() == (resumed.folder / "summary.json").read_bytes()
    assert resumed.record.done == 8
