"""Whole sites from the exports: sizes told before, cut files resumed, kills survived, bad files refetched."""

import gzip
import os
import signal
import subprocess
import sys

import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, Unreachable
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels import WordsFolder
from saeflow.labels.exports import Bucket, ExportKind, fetch_words, plan_fetch
from saeflow.labels.http import Fetcher
from saeflow.labels.neuronpedia import Sources

from .service import Fault

SOURCES = Sources("gpt2-small", patterns={Part.RES: "{layer}-res", Part.MLP: "{layer}-mlp"})
ALL = tuple(ExportKind)
SITES = [Site.parse(site) for site in ("0/res", "0/mlp", "1/res")]
RES = Site.parse("0/res")


def explanation(index, text, model="gpt-4o-mini"):
    return {
        "modelId": "gpt2-small",
        "layer": "0-res",
        "index": str(index),
        "description": text,
        "typeName": "oai",
        "explanationModelName": model,
    }


def feature(index):
    return {
        "modelId": "gpt2-small",
        "index": str(index),
        "pos_str": [f" up{index}", " "],
        "neg_str": [" low"],
        "frac_nonzero": index / 100,
    }


def activation(index, tokens, values):
    return {"index": str(index), "tokens": tokens, "values": values, "maxValue": max(values), "dataSource": "pile"}


def add_source(service, source):
    root = f"v1/gpt2-small/{source}"
    # as the exports are: rows sorted as text, several explanations of a feature, more than one folder of them
    order = sorted(range(12), key=str)
    service.add(f"{root}/explanations/batch-0.jsonl.gz", [explanation(i, f"label {i} of {source}") for i in order[:7]])
    service.add(
        f"{root}/explanations/batch-1.jsonl.gz",
        [explanation(i, f"label {i} of {source}") for i in order[7:11]]
        + [explanation(3, "by a rarer model", "claude"), explanation(3, None)],
    )
    service.add(f"{root}/explanations-claude/batch-0.jsonl.gz", [explanation(order[11], "only claude", "claude")])
    service.add(f"{root}/features/batch-0.jsonl.gz", [feature(i) for i in order])
    passages = [activation(i, ["a", "Ġking", f"t{i}", "b"], [0.0, float(i), 0.5, 0.0]) for i in order]
    passages += [
        activation(3, ["q", "strong"], [0.0, 50.0]),
        activation(3, ["zero"], [0.0]),
        activation(1 << 22, ["x"], [1.0]),
    ]
    service.add(f"{root}/activations/batch-0.jsonl.gz", passages)
    service.files[f"{root}/source.jsonl"] = b"{}"


@pytest.fixture
def exports(service):
    for source in ("0-res", "0-mlp"):
        add_source(service, source)
    service.add("v1/gpt2-small/10-res/explanations/batch-0.jsonl.gz", [explanation(0, "another layer")])
    return service


@pytest.fixture
def bucket(exports, tmp_path):
    return Bucket(exports.url, tmp_path / "exports", Fetcher(sleep=lambda _: None, timeout=5))


def told_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def test_sizes_are_told_before_anything_is_fetched(exports, bucket, tmp_path):
    plan = plan_fetch("mine", SOURCES, SITES, bucket)
    assert [str(site.site) for site in plan.sites] == ["0/mlp", "0/res"]
    assert plan.missing == (Site.parse("1/res"),)
    kinds = ("explanations", "features")
    wanted = {
        key: data for key, data in exports.files.items() if any(f"/{k}" in key for k in kinds) and "/10-res" not in key
    }
    assert plan.size == plan.to_fetch == sum(map(len, wanted.values()))
    assert {export.key for site in plan.sites for export in site.exports} == set(wanted)
    assert all("list-type" in path for path in exports.paths())
    assert len(exports.paths("1-res")) == 1


def test_a_site_becomes_words(bucket, tmp_path):
    out = tmp_path / "words"
    fetch_words(plan_fetch("mine", SOURCES, SITES, bucket, kinds=ALL), bucket, out)
    words = WordsFolder(out)
    assert words.sites == (Site.parse("0/mlp"), RES)
    rows = words.site(RES)
    assert len(rows) == 12
    three = rows[3]
    assert (three.label, three.by) == ("label 3 of 0-res", "gpt-4o-mini"), "the model that explained most"
    assert (rows[9].label, rows[9].by) == ("only claude", "claude")
    assert three.promotes == (" up3",)
    assert three.frequency == 0.03
    assert three.tokens == ("strong", " king")
    assert [context.tokens for context in three.contexts] == [("q", "strong"), ("a", " king", "t3", "b")]
    assert three.contexts[1].values == (0.0, 3.0, 0.5, 0.0)
    assert rows[0].tokens == ("t0",)
    assert words.get(FeatureId.parse("0/mlp/3")).label == "label 3 of 0-mlp"


def test_a_preferred_model_is_preferred(bucket, tmp_path):
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words", explainer="claude")
    rows = WordsFolder(tmp_path / "words").site(RES)
    assert (rows[3].label, rows[4].label) == ("by a rarer model", "label 4 of 0-res")
    assert rows[3].contexts == () == rows[3].tokens


def test_files_are_deleted_unless_they_are_to_be_kept(bucket, tmp_path):
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    fetch_words(plan, bucket, tmp_path / "words")
    assert not list((tmp_path / "exports").rglob("*.gz*"))
    assert plan_fetch("mine", SOURCES, [RES], bucket).to_fetch == plan.size
    fetch_words(plan, bucket, tmp_path / "other", keep=True)
    assert plan_fetch("mine", SOURCES, [RES], bucket).to_fetch == 0
    assert told_of(tmp_path / "other") == told_of(tmp_path / "words")


def test_what_is_written_is_not_fetched_again(exports, bucket, tmp_path):
    plan = plan_fetch("mine", SOURCES, SITES, bucket)
    fetch_words(plan, bucket, tmp_path / "words")
    before = len(exports.paths("batch"))
    fetch_words(plan, bucket, tmp_path / "words")
    assert len(exports.paths("batch")) == before
    fetch_words(plan, bucket, tmp_path / "words", contexts=2)
    assert len(exports.paths("batch")) == 2 * before


def test_offline_what_is_here_is_enough_and_what_is_not_is_said(bucket, tmp_path):
    offline = Bucket("http://127.0.0.1:9", bucket.folder, Fetcher(), offline=True)
    with pytest.raises(Unreachable, match="offline"):
        plan_fetch("mine", SOURCES, [RES], offline)
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words", keep=True)
    fetch_words(plan_fetch("mine", SOURCES, [RES], offline), offline, tmp_path / "again")
    assert told_of(tmp_path / "again") == told_of(tmp_path / "words")
    with pytest.raises(Unreachable, match="offline"):
        fetch_words(plan_fetch("mine", SOURCES, [RES], offline, kinds=ALL), offline, tmp_path / "more")


def test_a_folder_can_stand_in_for_the_bucket_and_loses_nothing(exports, bucket, tmp_path):
    for key, data in exports.files.items():
        (tmp_path / "mirror" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror" / key).write_bytes(data)
    folder = Bucket(str(tmp_path / "mirror"), tmp_path / "unused", Fetcher())
    plan = plan_fetch("mine", SOURCES, SITES, folder, kinds=ALL)
    assert plan.to_fetch == 0 < plan.size
    fetch_words(plan, folder, tmp_path / "a")
    fetch_words(plan_fetch("mine", SOURCES, SITES, bucket, kinds=ALL), bucket, tmp_path / "b")
    for name in ("0.res.jsonl.gz", "0.mlp.jsonl.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert all((tmp_path / "mirror" / key).read_bytes() == data for key, data in exports.files.items())
    with pytest.raises(Unreachable, match="neither a web address nor a folder"):
        plan_fetch("mine", SOURCES, SITES, Bucket(str(tmp_path / "none"), tmp_path, Fetcher()))


def test_a_cut_file_is_gone_on_with(exports, bucket, tmp_path):
    key = "v1/gpt2-small/0-res/features/batch-0.jsonl.gz"
    size = len(exports.files[key])
    exports.fail("features", Fault(cut=20), Fault(cut=30), Fault(500), Fault(429, headers={"Retry-After": "1"}))
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words")
    ranges = [headers.get("range") for path, headers in exports.asked if path.endswith(key)]
    assert ranges == [None, "bytes=20-", "bytes=50-", "bytes=50-", "bytes=50-"]
    assert size > 50
    assert WordsFolder(tmp_path / "words").site(RES)[3].frequency == 0.03


def test_a_file_that_changed_in_between_is_begun_anew(exports, bucket, tmp_path, monkeypatch):
    key = "v1/gpt2-small/0-res/features/batch-0.jsonl.gz"
    monkeypatch.setattr("saeflow.labels.http.STEP", 1)
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    exports.fail("features", *[Fault(cut=0)] * 5, Fault(cut=40), *[Fault(500)] * 6)
    with pytest.raises(Unreachable):
        fetch_words(plan, bucket, tmp_path / "words")
    exports.add(key, [feature(i) | {"frac_nonzero": 0.5} for i in range(12)])
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words")
    assert exports.asked[-1][1].get("range") == "bytes=40-"
    assert {row.frequency for row in WordsFolder(tmp_path / "words").site(RES)} == {0.5}


def test_a_server_without_entity_tags_is_read_from_the_start(exports, bucket, tmp_path):
    exports.fail("features", Fault(cut=20, headers={"ETag": ""}))
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words")
    assert [h.get("range") for p, h in exports.asked if "features/batch" in p] == [None, None]


@pytest.mark.parametrize(
    "body",
    [b"not gzip", *(gzip.compress(line, mtime=0) for line in (b"{]\n", b"[1]\n", b'{"index": "x"}\n'))],
    ids=["not gzip", "no JSON", "no object", "no number"],
)
def test_a_bad_file_is_fetched_once_more_and_then_said(exports, bucket, tmp_path, body):
    key = "v1/gpt2-small/0-res/features/batch-0.jsonl.gz"
    good = exports.files[key]
    exports.files[key] = body.ljust(len(good), b"\n") if body == b"not gzip" else body
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    with pytest.raises(BadFile, match=r"features/batch-0\.jsonl\.gz: row"):
        fetch_words(plan, bucket, tmp_path / "words")
    assert len(exports.paths("features/batch")) == 2
    assert not (tmp_path / "words" / "0.res.jsonl.gz").exists()
    exports.files[key] = good
    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket), bucket, tmp_path / "words")
    assert WordsFolder(tmp_path / "words").site(RES)[3].frequency == 0.03


def test_a_file_damaged_on_disk_is_fetched_anew(exports, bucket, tmp_path):
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    fetch_words(plan, bucket, tmp_path / "words", keep=True)
    (kept,) = (tmp_path / "exports").rglob("features/batch-0.jsonl.gz")
    kept.write_bytes(bytes(len(kept.read_bytes())))
    fetch_words(plan, bucket, tmp_path / "again", keep=True)
    assert told_of(tmp_path / "again") == told_of(tmp_path / "words")


def test_a_file_of_another_size_than_the_list_says_is_refused(exports, bucket, tmp_path):
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    exports.files["v1/gpt2-small/0-res/features/batch-0.jsonl.gz"] += b"more"
    with pytest.raises(BadFile, match="were announced"):
        fetch_words(plan, bucket, tmp_path / "words")


def test_a_file_without_an_end_and_one_that_drips_are_given_up(exports, bucket, tmp_path, monkeypatch):
    plan = plan_fetch("mine", SOURCES, [RES], bucket)
    exports.fail("features", Fault(endless=True))
    with pytest.raises(BadFile, match=r"more bytes than the .* that were announced"):
        fetch_words(plan, bucket, tmp_path / "words")
    assert exports.served < 64 << 20
    monkeypatch.setattr("saeflow.patience.WINDOW", 0.1)
    exports.fail("features", *[Fault(drip=0.02)] * 6)
    with pytest.raises(Unreachable, match=r"bytes in 0 s.* 6 times"):
        fetch_words(plan, bucket, tmp_path / "words")


@pytest.mark.parametrize("size", ["9" * 30, "9" * 5000, "-1", "many"])
def test_a_size_that_no_file_has_is_no_list(exports, bucket, size):
    entry = f"<Contents><Key>v1/gpt2-small/0-res/features/batch-0.jsonl.gz</Key><Size>{size}</Size></Contents>"
    exports.fail("list-type", Fault(body=f"<ListBucketResult>{entry}</ListBucketResult>".encode()))
    with pytest.raises(BadFile, match=r"a file of .* bytes"):
        plan_fetch("mine", SOURCES, SITES, bucket)


@pytest.mark.parametrize(
    "body",
    [
        b"<html></html>",
        b"no xml",
        b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>",
        b"<!DOCTYPE x [<!ENTITY y 'z'>]><ListBucketResult>&y;</ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
    ],
)
def test_a_list_that_is_none_is_said(exports, bucket, body):
    exports.fail("list-type", Fault(body=body))
    with pytest.raises(BadFile, match="is no list of files"):
        plan_fetch("mine", SOURCES, [RES], bucket)


def test_nothing_there_is_said(bucket):
    with pytest.raises(UnknownSite, match="4-res"):
        plan_fetch("mine", SOURCES, [Site.parse("4/res")], bucket)
    with pytest.raises(InvalidArgument, match="Name some of"):
        plan_fetch("mine", SOURCES, [RES], bucket, kinds=())


def test_rows_that_can_be_no_features_are_counted_and_left_out(bucket, tmp_path):
    import json

    fetch_words(plan_fetch("mine", SOURCES, [RES], bucket, kinds=ALL), bucket, tmp_path / "words")
    about = json.loads((tmp_path / "words" / "about.json").read_text())
    assert about["sites"]["0/res"] | {"request": ""} == {
        "source": "gpt2-small/0-res",
        "request": "",
        "features": 12,
        "labelled": 12,
        "skipped": 1,
    }


SLOWLY = """
import sys, time
from pathlib import Path
from saeflow.ids import Part, Site
from saeflow.labels.exports import Bucket, ExportKind
from saeflow.labels.exports import fetch_words, plan_fetch
from saeflow.labels.http import Fetcher
from saeflow.labels.neuronpedia import Sources

def progress(done, total, what):
    print(done, flush=True)
    time.sleep(0.02)

root = Path(sys.argv[2])
sources = Sources("gpt2-small", patterns={Part.RES: "{layer}-res", Part.MLP: "{layer}-mlp"})
bucket = Bucket(sys.argv[1], root / "exports", Fetcher())
plan = plan_fetch("mine", sources, [Site.parse("0/res"), Site.parse("0/mlp")], bucket, kinds=tuple(ExportKind))
fetch_words(plan, bucket, root / "words", progress=progress)
"""


def test_a_fetch_that_is_killed_goes_on_and_ends_in_the_same_bytes(exports, tmp_path):
    command = [sys.executable, "-c", SLOWLY, exports.url]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    once = len(exports.paths("batch"))
    with subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True) as running:
        for number, _ in enumerate(running.stdout):
            if number == 13:
                os.kill(running.pid, signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "words" / "0.mlp.jsonl.gz").exists()
    assert not (tmp_path / "killed" / "words" / "0.res.jsonl.gz").exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert told_of(tmp_path / "killed" / "words") == told_of(tmp_path / "whole" / "words")
    assert len(exports.paths("batch")) <= 2 * once + 1, "whole files were not fetched twice"
