"""A hub that lies: what it says is checked before it names a file, and every body and every wait has an end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, recipe
from layouts import arrays, write_sae_lens
from remote_release import NPZ_RECIPE, SITE, N

from saeflow.errors import BadFile, SaeflowError, Unreachable
from saeflow.sources.hub import CacheState, cache_state
from saeflow.sources.library import load_dictionaries
from saeflow.sources.releases import read_release
from saeflow.sources.remote import hub_file, transport
from saeflow.sources.remote.hub_file import HubFile
from saeflow.sources.remote.ranges import Ranges

LIES = {
    "a path as commit": {"X-Repo-Commit": "../../../../outside"},
    "a branch as commit": {"X-Repo-Commit": "main"},
    "too short a commit": {"X-Repo-Commit": COMMIT[:39]},
    "no digits": {"X-Repo-Commit": "g" * 40},
    "a path of 40 letters": {"X-Repo-Commit": f"../{'c' * 37}"},
    "a size beyond all files": {"X-Linked-Size": str(10**30)},
    "a size below nothing": {"X-Linked-Size": "-5"},
}


def _outside(tmp_path: Path) -> set[Path]:
    return {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "cache")}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written_for_it(lie: str, hub: Hub, release, tmp_path: Path):
    hub.says = LIES[lie]
    before = _outside(tmp_path)
    with pytest.raises(SaeflowError) as caught:
        release()[SITE]
    assert "\n" not in str(caught.value)
    assert _outside(tmp_path) == before
    assert not list((tmp_path / "cache").rglob("params.npz"))


@pytest.mark.parametrize("tag", ["..", "../../../outside", "a/b", "x" * 3000, "."])
def test_a_tag_is_never_a_path(tag: str, hub: Hub, release, tmp_path: Path):
    hub.says = {"X-Linked-Etag": f'"{tag}"'}
    before = _outside(tmp_path)
    assert release()[SITE].W_dec.shape[0] == N
    assert _outside(tmp_path) == before
    folder = Ranges(tmp_path / "cache", HubFile("a/b", "c.npz", COMMIT, tag, 9)).folder
    assert folder.parent == tmp_path / "cache" / "ranges"
    assert len(folder.name) == 64


def test_what_stands_in_the_cache_is_believed_no_more(hub: Hub, release, tmp_path: Path):
    release()[SITE]
    [ref] = (tmp_path / "cache").rglob("saeflow/refs/main")
    ref.write_text("../../../../..")
    entry = next(iter(read_release(str(tmp_path / "mine.toml")).sites.values()))
    assert cache_state(entry) is CacheState.NO
    for wrong in ({"commit": ".."}, {"file": "../a"}, {"size": 10**30}, {"size": "9"}):
        with pytest.raises(BadFile, match="A commit has 40 hexadecimal digits"):
            HubFile(**{"repo": "a/b", "file": "c.npz", "commit": COMMIT, "etag": "e", "size": 9} | wrong)


@pytest.mark.parametrize("wrong", ["../../x/params.npz", "/etc/params.npz"])
def test_a_recipe_that_leads_out_of_its_repository_is_refused(wrong: str, tmp_path: Path):
    lines = NPZ_RECIPE.replace("layer_24/width_16k/average_l0_73/params.npz", wrong)
    with pytest.raises(BadFile, match="leads out of its repository"):
        read_release(recipe(tmp_path / "a.toml", lines, layers=26))
    lines = NPZ_RECIPE.replace('part = "res"', 'part = "res"\nrevision = "../../main"')
    with pytest.raises(BadFile, match="leads out of its repository"):
        read_release(recipe(tmp_path / "b.toml", lines, layers=26))
    lines = NPZ_RECIPE.replace("layer_24/", "layer_{layer:>999999999}/")
    with pytest.raises(BadFile, match="more than a name"):
        read_release(recipe(tmp_path / "c.toml", lines, layers=26))


def test_a_body_without_an_end_is_cut_where_what_was_asked_for_ends(hub: Hub, release):
    hub.endless = {"cdn"}
    with pytest.raises(Unreachable, match=r"more than .* bytes came"):
        release()[SITE]
    assert hub.served < 5 * (16 << 20)  # what lies in buffers of the system, five times


def test_a_redirect_without_an_end_is_followed_and_not_read(hub: Hub, release):
    hub.endless = {"redirect"}
    assert release()[SITE].n_features == N
    assert hub.served < 64 << 20


def test_an_error_without_an_end_is_read_in_its_beginning(hub: Hub, release):
    found = release()[SITE]
    hub.forget()
    hub.endless, hub.answers = {"error"}, [(404, {})]
    with pytest.raises(Unreachable, match="cannot be fetched"):
        _ = found.W_dec
    assert hub.served < 16 << 20


@pytest.fixture
def config(hub: Hub, tmp_path: Path) -> str:
    """A release of a config and weights."""
    write_sae_lens(tmp_path / "made", arrays())
    hub.put("me/saes", tmp_path / "made")
    paths = sorted(key.removeprefix("me/saes/") for key in hub.files if key.startswith("me/saes"))
    lines = f'[[files]]\npart = "res"\nrepo = "me/saes"\npaths = {paths}\nlayers = [24]\n'
    return recipe(tmp_path / "lens.toml", lines, layers=26)


def test_a_small_file_without_an_end_is_given_up_where_it_should_end(hub: Hub, config: str):
    hub.endless = {"hub"}
    with pytest.raises(Unreachable, match="cannot be fetched"):
        load_dictionaries(config)[SITE]
    # huggingface_hub reads pieces of 10 MiB, and what lies in sockets on the way was served too
    assert hub.served < 64 << 20


def test_a_config_that_says_it_is_large_is_not_fetched(hub: Hub, config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "JSON", 20)
    with pytest.raises(BadFile, match="at most 20 are read"):
        load_dictionaries(config)[SITE]


def test_a_wait_of_a_day_that_a_hub_asks_for_is_not_waited_for(hub: Hub, config: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "QUIET", 0.3)
    hub.small = [(429, {"Retry-After": "86400"})]
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"no byte came in 0\.3 s"):
        load_dictionaries(config)[SITE]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("where", ["hub", "cdn"])
def test_headers_that_drip_are_given_up(where: str, hub: Hub, release, monkeypatch: pytest.MonkeyPatch):
    for module in (hub_file, transport):
        monkeypatch.setattr(module, "WHOLE", 0.3)
    monkeypatch.setattr(transport, "QUIET", 0.3)
    hub.drips = {where}
    began = time.monotonic()
    with pytest.raises(Unreachable):
        release()[SITE]
    assert time.monotonic() - began < 20
