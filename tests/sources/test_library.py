"""DictionarySet and load_dictionaries: folders, named releases over a hub that is a folder, and no "
"network."""

from __future__ import annotations

import gzip
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from layouts import arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope, write_sae_lens

from saeflow import files
from saeflow.demo import quality
from saeflow.errors import BadFile, UnknownRelease, UnknownSite, Unreachable, UnsupportedFormat
from saeflow.experiments.sampling import expand, open_dataset
from saeflow.files import pack_names
from saeflow.ids import Part, Site
from saeflow.matching.atlas import open_atlas
from saeflow.matching.build import build_atlas
from saeflow.sources.architectures import Tap
from saeflow.sources.formats import save_release
from saeflow.sources.library import DictionarySet, load_dictionaries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    write_gemma_scope(tree, arrays(1), part="mlp", layer=2)
    write_gemma_scope(tree, arrays(2), part="res", layer=2)
    write_sae_lens(tree, arrays(3))
    return tree


def test_a_folder_is_a_mapping_in_order_of_computation(folder: Path):
    found = load_dictionaries(folder)
    assert [str(site) for site in found] == ["2/mlp", "2/res", "5/res"]
    assert (found.sites, len(found), found.name, found.model) == (tuple(found), 3, "tree", "")
    assert Site(2, Part.RES) in found
    assert Site(2, Part.ATT) not in found
    assert found[Site(2, Part.RES)].W_dec.shape == (7, 4)
    assert found[Site(2, Part.RES)] is found[Site(2, Part.RES)]


def test_a_saeflow_folder_says_name_and_model(folder: Path, tmp_path: Path):
    save_release(tmp_path / "own", load_dictionaries(folder), name="mine", model="a/b", dtype=torch.float32)
    own = load_dictionaries(tmp_path / "own")
    assert (own.name, own.model, own.sites) == ("mine", "a/b", load_dictionaries(folder).sites)
    site = Site(2, Part.MLP)
    torch.testing.assert_close(own[site].W_dec, load_dictionaries(folder)[site].W_dec, rtol=0, atol=0)


def test_a_missing_site_lists_sites_by_layer(folder: Path):
    message = "tree has no dictionary at 3/res. It has mlp at layers 2; res at layers 2, 5"
    with pytest.raises(UnknownSite, match=message):
        load_dictionaries(folder)[Site(3, Part.RES)]


def test_only_the_site_asked_for_is_opened():
    opened: list[Site] = []

    def opener(site: Site):
        opened.append(site)
        raise BadFile("not this one")

    sites = [Site(i, Part.RES) for i in range(3)]
    found = DictionarySet("x", "", {site: (lambda site=site: opener(site)) for site in sites})
    assert (len(found), list(found), "res at layers 0-2" in repr(found)) == (3, sites, True)
    assert opened == []
    with pytest.raises(BadFile, match="not this one"):
        found[Site(1, Part.RES)]
    assert opened == [Site(1, Part.RES)]


def test_what_is_no_release_and_no_path_says_where_releases_are_listed_and_which_is_near():
    with pytest.raises(UnknownRelease, match=r"'nope' is neither .*exists\. `saeflow releases` lists"):
        load_dictionaries("nope")
    with pytest.raises(UnknownRelease, match=r"Did you mean 'gemma-scope-2b'\?"):
        load_dictionaries("gema-scope-2b")


def test_a_folder_without_dictionaries_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match="is of no known format"):
        load_dictionaries(tmp_path)


def test_the_demo_pack_is_a_saeflow_folder_in_the_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "saeflow"
    monkeypatch.setattr(files, "PACK", package / "demo" / "pack")
    with pytest.raises(BadFile, match=r"demo pack is missing: .*release\.json does not exist. Install"):
        load_dictionaries("demo")
    save_release(package / "demo" / "pack" / "saes", load_dictionaries(folder), name="demo", model="demo")
    assert load_dictionaries("demo").name == "demo"


def test_a_pack_opens_by_name_with_its_atlas_words_texts_and_quality(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    pack = tmp_path / "cache" / "packs" / "small"
    save_release(pack / "saes", load_dictionaries(folder), name="small", model="none/small", dtype=torch.int8)
    with pytest.raises(UnknownRelease, match=r"'small' is neither a release"):
        load_dictionaries("small")  # not whole: what was measured is written last
    (pack / "texts").mkdir()
    (pack / "texts" / "letters.json.gz").write_bytes(gzip.compress(b'["Dear Ann,", "Dear Ben,"]'))
    (pack / "quality.json").write_text('{"saes": {"2/res": {"l0": 3.0}}}')
    opened = load_dictionaries("small")
    assert (opened.name, opened.model, len(opened)) == ("small", "none/small", 3)
    assert quality("small")["saes"]["2/res"]["l0"] == 3.0
    build_atlas(opened, out=pack / "atlas", k=1, release="small")
    assert open_atlas("small").folder == pack / "atlas"
    assert expand(["small", "demo:maths"]) == ("small:letters", "small:python", "demo:maths")
    assert sorted(open_dataset("small:letters").read(0)) == ["Dear Ann,", "Dear Ben,"]
    assert "small" in pack_names()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch):
    """The hub of these tests is a function in place of hf_hub_download; byte ranges have a server in test_remote."""
    monkeypatch.setenv("SAEFLOW_WHOLE_FILES", "1")


def test_the_canonical_file_of_a_site_is_fetched_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str, str]] = []

    def download(repo: str, file: str, *, revision: str) -> str:
        asked.append((repo, file, revision))
        layer = int(file.split("/", maxsplit=1)[0].removeprefix("layer_"))
        return str(write_gemma_scope(tmp_path / str(len(asked)), arrays(), part=repo[-3:], layer=layer))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_dictionaries("gemma-scope-2b")
    assert (len(found), asked) == (78, [])
    res, att = found[Site(20, Part.RES)], found[Site(3, Part.ATT)]
    assert asked == [
        ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71/params.npz", "main"),
        ("google/gemma-scope-2b-pt-att", "layer_3/width_16k/average_l0_117/params.npz", "main"),
    ]
    assert (res.site, res.tap, att.site, att.tap) == (Site(20, Part.RES), Tap.RES, Site(3, Part.ATT), Tap.Z)


def test_a_release_of_folders_fetches_config_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = write_llama_scope(tmp_path, arrays())

    def download(repo: str, file: str, *, revision: str) -> str:
        assert repo == "fnlp/Llama3_1-8B-Base-LXR-8x"
        assert (made.parent / file).is_file()
        return str(made.parent / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load_dictionaries("llama-scope-8b-8x")[Site(3, Part.RES)].n_features == 7


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), OSError("refused"), TimeoutError()])
def test_no_network_says_which_file_and_what_to_do(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_dictionaries("gemma-scope-2b")
    message = r"average_l0_73/params\.npz of google/gemma-scope-2b-pt-res .*cannot be .*pass a folder"
    with pytest.raises(Unreachable, match=message):
        found[Site(24, Part.RES)]


def test_a_device_is_kept_for_every_tensor(folder: Path):
    found = load_dictionaries(folder, device="meta")
    d = found[Site(2, Part.RES)]
    assert (d.n_features, d._weights.read("W_dec").device.type) == (7, "meta")


def test_parameters_after_the_name_choose_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def download(repo: str, file: str, *, revision: str) -> str:
        asked.append(file)
        return str(write_gemma_scope(tmp_path, arrays(), layer=12))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_dictionaries("gemma-scope-2b@width=32k,l0=50").only([Part.RES])
    assert (found.name, found.sites) == ("gemma-scope-2b@width=32k,l0=50", (Site(12, Part.RES),))
    assert found[Site(12, Part.RES)].n_features == 7
    assert len(asked) == 1
    assert asked[0].startswith("layer_12/width_32k/average_l0_")


def test_a_file_that_a_repository_lacks_may_be_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Gemma Scope 2: the path says what config.json would."""
    made = write_gemma_scope_2(tmp_path, arrays())
    (made / "config.json").unlink()
    asked: list[str] = []

    def download(repo: str, file: str, *, revision: str) -> str:
        asked.append(file)
        if file.endswith("config.json"):
            raise LocalEntryNotFoundError("no such file")
        return str(made / Path(file).name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = load_dictionaries("gemma-scope-2-1b-pt@depths=four,l0=medium")[Site(7, Part.RES)]
    assert (str(found.site), found.tap) == ("7/res", Tap.RES)
    folder = "resid_post/layer_7_width_16k_l0_medium"
    assert asked == [f"{folder}/config.json", f"{folder}/params.safetensors"]


def test_a_release_on_centred_weights_centres_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = write_sae_lens(tmp_path, arrays())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, *, revision: str(made / Path(file).name))
    found = load_dictionaries("gpt2-small-res-jb")[Site(4, Part.RES)]
    assert (found.site, found.preprocessing.center) == (Site(4, Part.RES), True)


def test_what_is_in_the_cache_is_known_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = "layer_24/width_16k/average_l0_73/params.npz"
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, file, *, revision: str(tmp_path) if file == cached else None,
    )
    found = load_dictionaries("gemma-scope-2b")
    assert found.to_fetch(Site(24, Part.RES)) is None
    assert found.to_fetch(Site(0, Part.RES)) == (
        "google/gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105/params.npz"
    )
