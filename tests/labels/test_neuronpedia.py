"""Neuronpedia one feature at a time: what is asked, what is kept, and patience with whatever answers."""

import email.utils
import json
import time
import urllib.parse

import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease, Unreachable
from saeflow.files import check_sha256
from saeflow.ids import FeatureId, Site
from saeflow.labels import no_words, words_for
from saeflow.labels.http import Fetcher
from saeflow.labels.neuronpedia import Neuronpedia, Source, sources_of, words_of
from saeflow.sources.releases import known_releases, read_release

from .service import Fault

SOURCE = Source("gemma-2-2b", "20-gemmascope-res-16k")
PATH = f"{SOURCE}/7"


def passage(tokens, values, **more):
    return {"tokens": tokens, "values": values, "maxValue": max(values), "dataSource": "pile", **more}


FEATURE = {
    "modelId": "gemma-2-2b",
    "layer": "20-gemmascope-res-16k",
    "index": "7",
    "frac_nonzero": 0.012,
    "maxActApprox": 9.0,
    "pos_str": ["▁throne", "▁", "crown"],
    "neg_str": ["▁mud", ""],
    "pos_values": [1.5, 1.2, 1.0],
    "vector": [0.1] * 5,
    "explanations": [
        {"description": "about  kings\n", "explanationModelName": "gpt-4o-mini", "scores": [{"value": 0.6}]},
        {"description": "royalty", "explanationModelName": "claude", "scores": [{"value": 0.9}]},
    ],
    "activations": [
        passage(["▁the", "▁queen"], [0, 4.0]),
        passage([f"t{i}" for i in range(40)], [0.0] * 20 + [9.0] + [1.0] * 19),
        passage(["▁the", "▁queen"], [0, 3.0]),
        passage(["x"], [0.0]),
    ],
}


class Clock:
    """Seconds that pass when someone waits."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def api(service, clock):
    service.features[PATH] = FEATURE
    return Neuronpedia(base_url=service.url + "/", fetcher=Fetcher(sleep=clock.sleep, clock=clock, timeout=5))


def test_a_feature_becomes_words(api):
    words = api.feature(SOURCE, 7)
    assert (words.label, words.by) == ("royalty", "claude"), "the explanation with the best score"
    assert (words.promotes, words.suppresses) == ((" throne", "crown"), (" mud",))
    assert words.frequency == 0.012
    assert words.tokens == ("t20", " queen")
    assert [context.tokens for context in words.contexts] == [tuple(f"t{i}" for i in range(33)), (" the", " queen")]
    assert words.contexts[1].values == (0.0, 4.0), "of equal passages the stronger"
    assert words.contexts[0].source == "pile"
    assert words.score is None, "their scores are of other kinds than ours"


def test_a_preferred_explainer_is_preferred(service, clock):
    service.features[PATH] = FEATURE
    api = Neuronpedia(base_url=service.url, explainer="gpt")
    assert api.feature(SOURCE, 7).label == "about kings"


def test_without_explanations_the_tokens_are_the_label():
    assert words_of(FEATURE | {"explanations": []}, "here").label == "t20, queen"
    assert words_of({"pos_str": ["a"]}, "here").label == ""


def test_what_was_answered_once_is_not_asked_again(api, service):
    first = api.feature(SOURCE, 7)
    assert api.feature(SOURCE, 7) == first
    assert len(service.asked) == 1
    assert Neuronpedia(base_url="http://127.0.0.1:9", offline=True).feature(SOURCE, 7) == first
    service.features[PATH] = FEATURE | {"explanations": [{"description": "new"}]}
    assert api.feature(SOURCE, 7, refresh=True).label == "new"
    assert len(service.asked) == 2


def test_a_kept_answer_that_is_damaged_is_asked_for_again(api, service, tmp_path):
    api.feature(SOURCE, 7)
    (kept,) = (tmp_path / "cache" / "neuronpedia").rglob("7.json")
    kept.write_bytes(kept.read_bytes()[:50])
    assert api.feature(SOURCE, 7).label == "royalty"
    assert len(service.asked) == 2


def test_a_feature_nobody_knows_is_none_and_asked_for_again(api, service):
    assert api.feature(SOURCE, 8) is None
    service.features[f"{SOURCE}/8"] = FEATURE | {"index": "8"}
    assert api.feature(SOURCE, 8).label == "royalty"


@pytest.mark.parametrize("name", ["SAEFLOW_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked(service, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(Unreachable, match="offline"):
        Neuronpedia(base_url=service.url).feature(SOURCE, 7)
    assert service.asked == []


def test_the_key_is_sent_and_shown_nowhere(service, monkeypatch, clock, tmp_path):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "sk-secret")
    service.features[PATH] = FEATURE
    api = Neuronpedia(base_url=service.url)
    api.feature(SOURCE, 7)
    assert service.asked[0][1]["x-api-key"] == "sk-secret"
    service.fail("feature", Fault(401))
    with pytest.raises(Unreachable, match="NEURONPEDIA_API_KEY") as error:
        api.feature(SOURCE, 8)
    assert "sk-secret" not in f"{error.value!r} {error.value} {api!r} {vars(api)!r}"
    assert all(b"sk-secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_key_does_not_follow_to_another_address(service):
    service.features[PATH] = FEATURE
    service.fail("feature", Fault(302, headers={"Location": f"{service.url}/elsewhere/{PATH}"}))
    service.files[f"elsewhere/{PATH}"] = b"{}"
    with pytest.raises(BadFile):
        Neuronpedia(base_url=service.url, key="sk-secret").feature(SOURCE, 7)
    assert [("x-api-key" in headers) for _, headers in service.asked] == [True, False]


def test_busy_and_broken_answers_are_tried_again(api, service, clock):
    service.fail("feature", Fault(429, headers={"Retry-After": "7"}), Fault(500), Fault(503), Fault(cut=30))
    assert api.feature(SOURCE, 7).label == "royalty"
    assert clock.waits == [7.0, 2.0, 4.0, 8.0]
    assert len(service.asked) == 5


def test_a_date_to_come_back_at_is_kept(api, service, clock):
    service.fail("feature", Fault(429, headers={"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)}))
    assert api.feature(SOURCE, 7).label == "royalty"
    assert 50 < clock.waits[0] <= 61


def test_a_wait_that_is_too_long_is_said(api, service, clock):
    service.fail("feature", Fault(429, headers={"Retry-After": "3600"}))
    with pytest.raises(Unreachable, match="3600 seconds"):
        api.feature(SOURCE, 7)
    assert clock.waits == []


def test_patience_ends(api, service, clock):
    service.fail("feature", *[Fault(500)] * 6)
    with pytest.raises(Unreachable, match="answers 500"):
        api.feature(SOURCE, 7)
    assert len(service.asked) == 6


@pytest.mark.parametrize("fault", [Fault(endless=True), Fault(drip=0.05)], ids=["endless", "drips"])
def test_an_answer_without_an_end_and_one_that_drips_are_given_up(service, clock, fault, monkeypatch):
    monkeypatch.setattr("saeflow.labels.http._MOST", 1 << 16)
    service.features[PATH] = FEATURE
    service.fail("feature", fault, fault)
    fetcher = Fetcher(sleep=clock.sleep, attempts=2, whole=0.3)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"more than 0 MB|no whole answer within 0\.3 s.* 2 times"):
        Neuronpedia(base_url=service.url, fetcher=fetcher).feature(SOURCE, 7)
    assert time.monotonic() - began < 5
    assert service.served < 64 << 20


@pytest.mark.parametrize("wait", ["1e999", "9" * 400, "-5", "nan", "Sun, 06 Nov 99999 08:49:37 GMT"])
def test_a_wait_that_is_no_time_is_none(api, service, clock, wait):
    service.fail("feature", Fault(429, headers={"Retry-After": wait}))
    assert api.feature(SOURCE, 7).label == "royalty"
    assert clock.waits == [1.0]


def test_a_key_that_the_server_repeats_stands_in_no_words(service, clock, tmp_path):
    key = "sk/secret+0123"
    forms = [key, urllib.parse.quote(key, safe=""), "".join(f"%{ord(c):02X}" for c in key)]
    said = {"description": f"you are {' or '.join(forms)}", "explanationModelName": "claude"}
    service.features[PATH] = FEATURE | {"explanations": [said]}
    fetcher = Fetcher(headers={"X-Api-Key": key}, sleep=clock.sleep)
    words = Neuronpedia(base_url=service.url, fetcher=fetcher).feature(SOURCE, 7)
    assert words.label == "you are [key] or [key] or [key]"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()] == []


def test_nobody_there_is_said(clock):
    api = Neuronpedia(base_url="http://127.0.0.1:9", fetcher=Fetcher(sleep=clock.sleep, attempts=2))
    with pytest.raises(Unreachable, match="does not answer"):
        api.feature(SOURCE, 7)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'"x"',
        b"{}",
        b'{"index": "8", "pos_str": []}',
        b'{"modelId": "gpt2-small", "pos_str": []}',
        b"\xff\xfe",
    ],
)
def test_garbage_is_said_and_not_kept(api, service, body, tmp_path):
    service.fail("feature", Fault(body=body))
    with pytest.raises(BadFile):
        api.feature(SOURCE, 7)
    assert not list((tmp_path / "cache").rglob("7.json"))
    assert api.feature(SOURCE, 7).label == "royalty"


@pytest.mark.parametrize(
    "wrong",
    [
        {"activations": [{"tokens": ["a", "b"], "values": [1.0]}]},
        {"activations": [{"tokens": ["a"]}]},
        {"pos_str": [3]},
        {"frac_nonzero": 7},
        {"frac_nonzero": "x"},
        {"explanations": [3]},
        {"activations": [passage([3], [1.0])]},
    ],
)
def test_fields_of_another_form_are_said(wrong):
    with pytest.raises(BadFile, match="feature 7"):
        words_of(FEATURE | wrong, "feature 7")


def test_requests_above_the_share_of_an_hour_wait(service, clock):
    for index in range(5):
        service.features[f"{SOURCE}/{index}"] = FEATURE | {"index": str(index)}
    api = Neuronpedia(base_url=service.url, fetcher=Fetcher(per_hour=3, sleep=clock.sleep, clock=clock))
    for index in range(5):
        api.feature(SOURCE, index)
        clock.now += 10
    assert clock.waits == [3570.0], "the fourth waits until the first is an hour old, the fifth then no more"


def test_a_release_is_words_and_offline_only_those_that_were_asked_for(api, service):
    sources = sources_of("gemma-scope-2b")
    feature = FeatureId.parse("20/res/7")
    assert api.words(sources).get(feature).label == "royalty"
    assert words_for("gemma-scope-2b").get(feature).label == "royalty"
    assert words_for("gemma-scope-2b").get(FeatureId.parse("20/res/8")) is None
    assert words_for("gemma-scope-2b").site(Site.parse("20/res")) == []
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("release", "site", "source"),
    [
        ("gemma-scope-2b", "20/res", "gemma-2-2b/20-gemmascope-res-16k"),
        ("gemma-scope-9b", "0/att", "gemma-2-9b/0-gemmascope-att-16k"),
        ("llama-scope-8b-8x", "31/mlp", "llama3.1-8b/31-llamascope-mlp-32k"),
        ("llama-scope-8b-32x", "3/res", "llama3.1-8b/3-llamascope-res-131k"),
        ("gpt2-small-res-jb", "7/res", "gpt2-small/8-res-jb"),
    ],
)
def test_sites_have_the_names_of_the_table(release, site, source):
    assert str(sources_of(release).at(Site.parse(site))) == source


def test_the_table_of_the_paper_s_releases_is_complete():
    for release in ("gemma-scope-2b", "gemma-scope-9b", "llama-scope-8b-8x", "llama-scope-8b-32x", "gpt2-small-v5"):
        sources = sources_of(release)
        assert all(sources.at(site) is not None for site in read_release(release).sites), release


def test_every_source_of_every_release_can_be_asked_for():
    for release in known_releases():
        told = {site: entry.labels for site, entry in read_release(release).sites.items() if entry.labels}
        if told:
            sources = sources_of(release)
            assert {site: str(sources.at(site)) for site in told} == told


def test_labels_of_other_dictionaries_of_a_site_are_refused():
    assert sources_of("gemma-scope-2b@width=65k").at(Site.parse("3/res")).id == "3-gemmascope-res-65k"
    with pytest.raises(InvalidArgument, match="canonical"):
        sources_of("gemma-scope-2b@l0=20")
    assert words_for("gemma-scope-2b@l0=20") is no_words


def test_a_pattern_names_the_sources_of_any_release():
    sources = sources_of("mine", "qwen3-4b/{layer}-mine-{part}-hp")
    assert str(sources.at(Site.parse("3/mlp"))) == "qwen3-4b/3-mine-mlp-hp"


@pytest.mark.parametrize(
    "pattern", ["x", "m/s", "m/{part}", "m/{layer", "m/{layer.real}", "../{layer}", "m/{layer}/{part}", "m/{0}{layer}"]
)
def test_a_pattern_that_names_nothing_is_refused(pattern):
    with pytest.raises(InvalidArgument, match="names no sources"):
        sources_of("mine", pattern)


def test_a_release_nobody_knows_is_said():
    with pytest.raises(UnknownRelease, match="Give a pattern"):
        sources_of("mine")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a b"])
def test_names_cannot_leave_the_cache(name):
    with pytest.raises(InvalidArgument):
        Source("gemma-2-2b", name)


def test_kept_answers_leave_out_what_is_large(api, tmp_path):
    api.feature(SOURCE, 7)
    (kept,) = (tmp_path / "cache" / "neuronpedia").rglob("7.json")
    assert "vector" not in json.loads(check_sha256(kept.read_bytes()))
