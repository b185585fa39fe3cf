"""Tensors of files on a hub by byte range: what is fetched, how it goes on, what is checked, what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pytest
from hub_server import COMMIT, TOKEN, Hub, forget_session, recipe
from huggingface_hub import constants
from huggingface_hub.utils import scan_cache_dir
from layouts import Arrays, arrays, write_gemma_scope
from remote_release import DECODER, NPZ, NPZ_RECIPE, SITE, D, N, same, size_of

from saeflow.errors import BadFile, NoSpace, Unreachable
from saeflow.sources.hub import CacheState, cache_state
from saeflow.sources.library import load_dictionaries
from saeflow.sources.releases import read_release
from saeflow.sources.remote import ranges, reporting, transport
from saeflow.sources.remote.hub_file import HubFile
from saeflow.sources.remote.transport import Patience


def test_matching_fetches_the_decoder_and_nothing_else(hub: Hub, release, planted: Arrays):
    found = release()[SITE]
    assert (found.n_features, found.d_in) == (N, D)
    headers = hub.served
    assert headers < 6 * 2**14
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    assert DECODER < hub.served - headers < DECODER + 256
    assert hub.served < 0.6 * size_of(hub)


def test_the_rest_comes_when_it_is_read_and_nothing_comes_twice(hub: Hub, release, planted: Arrays):
    same(release()[SITE], planted)
    assert hub.served < size_of(hub) + 6 * 2**14
    hub.forget()
    same(release()[SITE], planted)
    assert (hub.served, hub.asked()) == (0, [])


def test_the_token_goes_to_the_hub_alone(hub: Hub, release, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated.add("google/gemma-scope-2b-pt-res")
    assert release()[SITE].W_dec.shape == (N, D)
    assert hub.asked("GET", "hub")
    assert {one.token for one in hub.log if one.where == "hub"} == {f"Bearer {TOKEN}"}
    assert {(one.token, one.host.partition(":")[0]) for one in hub.log if one.where == "cdn"} == {("", "localhost")}


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_any_session_of_huggingface_hub_serves(
    hub: Hub, release, planted: Arrays, library: str, monkeypatch: pytest.MonkeyPatch
):
    """Before version 1 it was requests, then httpx."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if library == "httpx":
        session: object = httpx.Client(follow_redirects=True)
    else:
        session = pytest.importorskip("requests").Session()
    monkeypatch.setattr(transport, "get_session", lambda: session)
    hub.cut_after = [100_000]
    if library == "httpx":  # another httpx than the hub's own
        monkeypatch.setattr(transport, "_CUT", (httpx.HTTPError,))
    same(release()[SITE], planted)
    assert not hub.cut_after
    assert not any(one.token for one in hub.log if one.where == "cdn")
    session.close()


def test_a_cut_is_gone_on_from_where_it_was(hub: Hub, release, planted: Arrays):
    found = release()[SITE]
    hub.forget()
    hub.cut_after = [100_000, 150_000]
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    first, second, third = hub.asked()
    starts = [int(one.range.removeprefix("bytes=").partition("-")[0]) for one in (first, second, third)]
    # requests, which huggingface_hub used before 1.0, hands on whole pieces only
    piece = 1 if hasattr(huggingface_hub, "close_session") else transport._SMALL
    assert first.if_range == ""
    assert 0 <= 100_000 - (starts[1] - starts[0]) < piece
    assert 0 <= 150_000 - (starts[2] - starts[1]) < piece
    assert second.if_range == third.if_range != ""
    assert hub.served < DECODER + 256 + 2 * (piece - 1)


def test_cuts_without_a_byte_end_after_some_attempts(hub: Hub, release):
    found = release()[SITE]
    hub.forget()
    hub.cut_after = [0] * 9
    with pytest.raises(Unreachable, match=r"params\.npz of google/gemma-scope-2b-pt-res: .*5 times"):
        _ = found.W_dec
    assert len(hub.asked()) == 5


def test_later_is_waited_for_and_too_late_is_not(hub: Hub, release):
    found = release()[SITE]
    hub.answers = [(503, {}), (429, {"Retry-After": "1"})]
    assert found.W_dec.shape == (N, D)
    hub.answers = [(429, {"Retry-After": "3600"})]
    with pytest.raises(Unreachable, match="answers 429"):
        _ = found.W_enc


def test_waiting_doubles_and_says_that_what_came_is_kept(monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    file = HubFile("me/saes", "a.npz", COMMIT, "etag", 9)
    patience = Patience(sleep=waited.append)
    for failed in range(1, 5):
        patience.wait(file, failed, transport.Cut("cut"))
    patience.wait(file, 1, transport.Cut("later", 7.0))
    assert waited == [1, 2, 4, 8, 7]
    with pytest.raises(Unreachable, match=r"5 times without a new byte\. What was fetched is kept"):
        patience.wait(file, 5, transport.Cut("cut"))


def test_a_silent_server_is_given_up_and_asked_again(hub: Hub, release, planted: Arrays, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    found = release()[SITE]
    hub.forget()
    hub.pause_after = [120_000]
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    hub.go_on.set()
    assert len(hub.asked()) == 2
    assert not hub.asked()[1].range.startswith(hub.asked()[0].range[:9])


READ = """
import sys
from saeflow import load_dictionaries
from saeflow.ids import Site
print(load_dictionaries(sys.argv[1])[Site.parse("24/res")].W_dec.sum().item())
"""


def _wait_for_part(cache: Path, size: int, process: subprocess.Popen[bytes]) -> list[Path]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        parts = list(cache.rglob("*.part"))
        if parts and parts[0].stat().st_size >= size:
            return parts
        time.sleep(0.02)
    pytest.fail("nothing was fetched")


def test_after_a_kill_no_byte_comes_twice(hub: Hub, release, planted: Arrays, tmp_path: Path):
    """A process of its own, with the hub named by HF_ENDPOINT as users name it."""
    hub.pause_after = [200_000]
    environment = {**os.environ, "HF_ENDPOINT": hub.hub_url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", READ, str(tmp_path / "mine.toml")], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        parts = _wait_for_part(tmp_path / "cache", 196_608, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        hub.go_on.set()
    kept = parts[0].stat().st_size
    hub.forget()
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), planted.W_dec)
    [one] = hub.asked()
    start = int(parts[0].name.partition("-")[0])
    assert kept >= 196_608
    assert one.range.startswith(f"bytes={start + kept}-")
    assert one.if_range
    assert hub.served < DECODER - kept + 2 * 4096  # a piece may have been under way to the process that is dead


def test_a_file_that_became_another_is_not_joined_to_the_old_one(hub: Hub, release, tmp_path: Path):
    found = release()[SITE]
    hub.cut_after = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(Unreachable):
        _ = found.W_dec
    other = arrays(seed=1, n_features=N, d_in=D)
    write_gemma_scope(tmp_path / "other", other)
    hub.put("google/gemma-scope-2b-pt-res", tmp_path / "other" / "gemma-scope-2b-pt-res")
    with pytest.raises(Unreachable, match="changed while it was fetched"):
        _ = found.W_dec
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), other.W_dec)


def test_another_tag_of_the_same_file_starts_the_range_again(hub: Hub, release, planted: Arrays):
    """The CDN may tag the same bytes anew; the hub says that it is the same file."""
    found = release()[SITE]
    hub.cut_after = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(Unreachable):
        _ = found.W_dec
    hub.revision_etag = "b"
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)


def test_without_tags_the_commit_holds_the_file(hub: Hub, release, planted: Arrays):
    hub.etags = False
    hub.cut_after = [100_000]
    same(release()[SITE], planted)
    assert not any(one.if_range for one in hub.log)


def test_a_server_without_ranges_gives_the_whole_file(hub: Hub, release, planted: Arrays, tmp_path: Path):
    hub.ranges = False
    found = release()[SITE]
    same(found, planted)
    assert "/snapshots/" in found.origin
    assert cache_state(next(iter(read_release(str(tmp_path / "mine.toml")).sites.values()))) is CacheState.YES


def test_a_server_that_stops_giving_ranges_gives_the_whole_file(hub: Hub, release, planted: Arrays):
    found = release()[SITE]
    hub.ranges = False
    same(found, planted)
    hub.forget()
    same(release()[SITE], planted)
    assert hub.served == 0


def test_a_whole_file_in_the_hubs_cache_is_used(hub: Hub, release, planted: Arrays):
    opened = release()[SITE]
    huggingface_hub.hf_hub_download("google/gemma-scope-2b-pt-res", NPZ)
    hub.forget()
    same(release()[SITE], planted)
    same(opened, planted)
    assert hub.served == 0


def test_whole_files_are_fetched_where_asked_for(hub: Hub, release, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAEFLOW_WHOLE_FILES", "1")
    assert "/snapshots/" in release()[SITE].origin
    assert hub.served == size_of(hub)


def test_damage_on_the_way_is_seen_by_the_checksum_of_the_zip(hub: Hub, release, planted: Arrays):
    """Once: fetched again. Twice: refused."""
    [key] = hub.files
    good, found = hub.files[key], release()[SITE]
    place = good.index(planted.W_dec[1000].tobytes())
    bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    tag = hub.revision_etag
    hub.etags = False
    hub.files[key] = bad
    with pytest.raises(BadFile, match="W_dec does not have the checksum that its own file gives, twice"):
        _ = found.W_dec
    hub.files[key], hub.revision_etag = good, tag
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)


def test_damage_on_the_disk_is_seen_and_mended(hub: Hub, release, planted: Arrays, tmp_path: Path, monkeypatch):
    _ = release()[SITE].W_dec
    [path] = [p for p in (tmp_path / "cache").rglob("ranges/*/*") if p.stat().st_size > DECODER]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(ranges, "_CHECKED", set())
    hub.forget()
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), planted.W_dec)
    assert DECODER <= hub.served < DECODER + 256


def test_offline_only_what_is_here_is_read(hub: Hub, release, planted: Arrays, monkeypatch):
    _ = release()[SITE].W_dec
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_session()
    hub.forget()
    found = release()[SITE]
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    with pytest.raises(Unreachable, match=r"are not on this machine, and HF_HUB_OFFLINE is set. Unset it"):
        _ = found.W_enc
    assert hub.log == []


def test_offline_with_nothing_here_says_so(hub: Hub, release, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_session()
    with pytest.raises(Unreachable, match=r"average_l0_73/params\.npz of google.* HF_HUB_OFFLINE is set: unset it"):
        release()[SITE]
    assert hub.log == []


def test_without_a_network_what_is_here_is_read(hub: Hub, release, planted: Arrays, monkeypatch):
    _ = release()[SITE].W_dec
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), planted.W_dec)


@pytest.mark.parametrize(
    ("token", "refuse", "message"),
    [
        ("", False, r"gated, and this machine has no token. Accept its conditions at .*/google/gemma-scope-2b-pt"),
        ("hf_other", False, "is gated, and the token of this machine is not of an account that may"),
        (TOKEN, True, "then log in .*hf auth login"),
    ],
)
def test_a_gated_repository_says_how_to_get_in(hub: Hub, release, monkeypatch, token, refuse, message):
    (hub.refused if refuse else hub.gated).add("google/gemma-scope-2b-pt-res")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(Unreachable, match=message) as caught:
        release()[SITE]
    assert not token or token not in str(caught.value)
    assert hub.asked() == []


def test_a_repository_that_closes_after_it_was_opened_says_so(hub: Hub, release):
    found = release()[SITE]
    hub.gated.add("google/gemma-scope-2b-pt-res")
    with pytest.raises(Unreachable, match="is gated, and this machine has no token"):
        _ = found.W_dec


def test_what_there_is_not_is_said_apart(hub: Hub, release, tmp_path: Path):
    other = NPZ_RECIPE.replace("l0_73", "l0_74")
    with pytest.raises(Unreachable, match="There is no such file at this revision"):
        load_dictionaries(recipe(tmp_path / "a.toml", other, layers=26))[SITE]
    private = NPZ_RECIPE.replace("google/", "private/")
    with pytest.raises(Unreachable, match="does not exist, or it is private and this machine has no token"):
        load_dictionaries(recipe(tmp_path / "b.toml", private, layers=26))[SITE]


def test_a_disk_that_is_too_small_is_said_before_with_both_numbers(hub: Hub, release, monkeypatch):
    found = release()[SITE]
    hub.forget()
    usage = shutil.disk_usage("/")._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpace, match=r"0\.4 MB are to be fetched, and 0\.3 MB are free on the disk of"):
        _ = found.W_dec
    assert hub.asked() == []


def test_a_hub_that_names_no_commit_gives_whole_files_its_own_way(hub: Hub, release):
    """Nothing could be pinned; hf_hub_download refuses such a hub, and its reason is passed on."""
    hub.commits = False
    with pytest.raises(Unreachable, match="cannot be fetched"):
        release()[SITE]
    assert not any(one.range for one in hub.log)


def test_progress_is_told_in_bytes(hub: Hub, release):
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *now: told.append(now)):
        _ = release()[SITE].W_dec
    size = told[0][2]
    assert {what for what, _, _ in told} == {"W_dec of params.npz"}
    assert (told[0][1], told[-1][1]) == (0, size)
    assert [here for _, here, _ in told] == sorted(here for _, here, _ in told)
    assert DECODER < size < DECODER + 256


def test_two_that_read_at_once_fetch_once(hub: Hub, release, planted: Arrays):
    both = [release()[SITE], release()[SITE]]
    hub.forget()
    with ThreadPoolExecutor(2) as pool:
        for W_dec in pool.map(lambda d: d.W_dec, both):
            np.testing.assert_array_equal(W_dec.numpy(), planted.W_dec)
    assert len(hub.asked()) == 1


def test_the_hubs_own_tools_take_the_cache_as_it_is(hub: Hub, release, tmp_path: Path):
    _ = release()[SITE].W_dec
    told = scan_cache_dir(tmp_path / "cache")
    assert [str(warning) for warning in told.warnings] == []
    [repo] = told.repos
    told.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
    assert not list((tmp_path / "cache").rglob("ranges"))
