"""Recipes: parameters, the choice of files, other names, and TOML that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saeflow.errors import BadFile, InvalidArgument, UnknownRelease
from saeflow.ids import Part, Site
from saeflow.sources import releases
from saeflow.sources.releases import Release, is_release, known_releases, read_release

# The canonical average L0s of three layers, as pretrained_saes.yaml of sae-lens has them.
CANONICAL = {
    "gemma-scope-2b": {"0/res": 105, "24/res": 73, "3/att": 117, "25/mlp": 126},
    "gemma-scope-2b-65k": {"0/res": 73, "24/mlp": 128, "25/att": 63},
    "gemma-scope-9b": {"41/res": 113, "27/att": 136, "0/mlp": 50},
    "gemma-scope-9b@width=131k": {"23/att": 66},
}


def l0(recipe: Release, site: str) -> int:
    [file] = recipe.sites[Site.parse(site)].files
    return int(file.split("average_l0_")[1].split("/")[0])


@pytest.mark.parametrize("name", known_releases())
def test_every_recipe_names_a_model_and_files_that_differ(name: str):
    recipe = read_release(name)
    files = [(entry.repo, file) for entry in recipe.sites.values() for file in entry.files]
    assert recipe.model.count("/") == 1
    assert recipe.about
    assert all(entry.repo.count("/") == 1 and entry.revision for entry in recipe.sites.values())
    assert len(set(files)) == len(files)
    assert not any("{" in file for _, file in files)
    assert all(entry.size for entry in recipe.sites.values())


@pytest.mark.parametrize("name", known_releases())
def test_every_value_of_every_parameter_has_files(name: str):
    options = read_release(name).options
    for key, values in options.items():
        for value in values:
            asked = f"{name}@{key}={value if value != 'a number' else 20}"
            try:
                found = read_release(asked)
            except InvalidArgument:  # some values go with others only
                found = read_release(f"{asked},depths=four" if "depths" in options else f"{asked},width=16k")
            assert found.sites


@pytest.mark.parametrize(
    ("name", "layers", "parts"),
    [
        ("gemma-scope-2b", 26, 3),
        ("gemma-scope-9b@width=131k", 42, 3),
        ("gemma-scope-2b@mlp=transcoder", 26, 3),
        ("gemma-scope-2-1b-pt", 26, 3),
        ("gemma-scope-2-27b-it@width=262k,l0=small", 62, 3),
        ("gemma-scope-2-270m-it@mlp=transcoder-affine", 18, 3),
        ("gemma-scope-2-27b-pt", 62, 1),
        ("llama-scope-8b-8x", 32, 3),
        ("llama-scope-8b-32x@mlp=transcoder", 32, 3),
        ("gpt2-small-v5", 12, 3),
        ("gpt2-small-v5@width=128k", 12, 3),
        ("gpt2-small-res-jb", 12, 1),
        ("pythia-70m-deduped", 6, 3),
        ("eleuther-pythia-70m-32k", 6, 3),
        ("eleuther-llama-3-8b-32x", 32, 1),
    ],
)
def test_complete_releases_are_complete(name: str, layers: int, parts: int):
    sites = read_release(name).sites
    assert len(sites) == layers * parts
    assert {site.layer for site in sites} == set(range(layers))


@pytest.mark.parametrize("name", CANONICAL)
def test_the_canonical_files_are_those_the_field_calls_so(name: str):
    recipe = read_release(name)
    assert {site: l0(recipe, site) for site in CANONICAL[name]} == CANONICAL[name]


def test_another_name_is_the_same_files_under_its_own_name():
    mine, theirs = read_release("gemma-scope-2b-65k"), read_release("gemma-scope-2b@width=65k")
    assert (mine.name, mine.sites) == ("gemma-scope-2b-65k", theirs.sites)
    more = read_release("gemma-scope-2b-65k@l0=20")
    assert l0(more, "0/res") == l0(read_release("gemma-scope-2b@width=65k,l0=20"), "0/res") != 73


def test_an_l0_by_number_is_the_closest_there_is():
    """Layer 0 of the residual stream has 13, 25, 46, 105 and 226."""
    got = [l0(read_release(f"gemma-scope-2b@l0={asked}"), "0/res") for asked in (1, 19, 20, 75, 76, 999)]
    assert got == [13, 13, 25, 46, 105, 226]


def test_a_width_of_some_layers_gives_those():
    sites = read_release("gemma-scope-2b@width=1m").sites
    assert list(sites) == [Site(5, Part.RES), Site(12, Part.RES), Site(19, Part.RES)]
    assert [site.layer for site in read_release("gemma-scope-2-1b-pt@depths=four,l0=medium,width=1m").sites][:2] == [
        7,
        7,
    ]


def test_a_parameter_chooses_files_and_labels():
    entry = read_release("gemma-scope-2b").sites[Site.parse("24/res")]
    assert entry.labels == "gemma-2-2b/24-gemmascope-res-16k"
    assert entry.size.n_bytes == 4 * (2 * 16384 * 2304 + 2 * 16384 + 2304)
    tc = read_release("gemma-scope-2b@mlp=transcoder").sites[Site.parse("3/mlp")]
    assert (tc.repo, tc.labels) == ("google/gemma-scope-2b-pt-transcoders", "gemma-2-2b/3-gemmascope-transcoder-16k")
    v5 = read_release("gpt2-small-v5@width=128k").sites[Site.parse("3/res")]
    assert v5.files == ("v5_128k_layer_3/cfg.json", "v5_128k_layer_3/sae_weights.safetensors")


def test_a_dictionary_before_a_block_is_the_one_after_the_block_before():
    sites = read_release("gpt2-small-res-jb").sites
    assert sites[Site.parse("0/res")].files[0] == "blocks.1.hook_resid_pre/cfg.json"
    assert sites[Site.parse("11/res")].files[0] == "blocks.11.hook_resid_post/cfg.json"
    assert all(entry.center for entry in sites.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma-scope-2b@width=17k", r"no files with width '17k'. There are: 16k, .*1m"),
        ("gemma-scope-2b@height=3", r"no parameter 'height'. Parameters: width \(16k, .*l0 \(canonical, a number\)"),
        ("gemma-scope-2b@l0=many", "l0 'many' is neither a number nor 'canonical'"),
        ("gemma-scope-2b@65k", "'65k' is no choice of parameters. Write NAME@key=value"),
        ("gemma-scope-2b@", "is no choice of parameters"),
        ("gemma-scope-2-1b-pt@l0=medium", "no files with depths all, width 16k, l0 medium, mlp sae together"),
        ("llama-scope-8b-8x@width=1", r"no parameter 'width'. Parameters: mlp \(sae, transcoder\)"),
        ("eleuther-llama-3-8b-32x@k=1", "Parameters: none"),
    ],
)
def test_a_choice_there_is_not_is_refused_with_those_there_are(name: str, message: str):
    with pytest.raises(InvalidArgument, match=message):
        read_release(name)


def test_what_is_no_release_is_refused():
    assert not is_release("gemma")
    assert not is_release("gone.toml")
    with pytest.raises(UnknownRelease, match=r"'gemma' is no named release\. `saeflow releases` lists them"):
        read_release("gemma@width=16k")


OWN = """
model = "me/my-model"
layers = 2
[parameters]
run = "a"
[[files]]
part = "res"
repo = "me/saes"
paths = ["{run}/{layer}.npz"]
when = { run = ["a", "b"] }
"""


def test_a_recipe_of_ones_own_is_a_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    assert is_release(str(path))
    sites = read_release(f"{path}@run=b").sites
    assert [entry.files for entry in sites.values()] == [("b/0.npz",), ("b/1.npz",)]
    assert next(iter(sites.values())).revision == "main"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.replace("layers = 2", "layers = 'two'"), "layers is 'two', expected int"),
        (lambda s: s.replace('part = "res"', 'part = "r"'), "has part 'r' and unknown keys"),
        (lambda s: s.replace("repo =", "repository ="), r"unknown keys \['repository'\]"),
        (lambda s: s.replace("{run}", "{seed}"), "a place 'seed' that no parameter fills"),
        (lambda s: s.replace("{run}", "{"), "that no parameter fills"),
        (lambda s: s.replace('paths = ["{run}/{layer}.npz"]', "paths = []"), "have no paths"),
        (lambda s: s.replace('run = ["a", "b"]', 'seed = ["1"]'), r"depend on \['seed'\]"),
        (lambda s: s + 'layers = ["0"]', "are not all numbers"),
        (lambda s: s + "[files.l0]\n0 = [1]", "depend on l0"),
        (lambda s: s.replace('model = "me/my-model"', ""), "model is None, expected str"),
        (lambda s: s + "]", "cannot be read as TOML"),
        (lambda s: s + 'optional = "x.json"', "optional is 'x.json', expected list"),
        (lambda s: s + "optional = [1]", "1 is among the paths of me/saes"),
        (lambda s: s + 'n_features = "16k"', "n_features is '16k', expected int"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_entry(tmp_path: Path, edit: Callable[[str], str], message: str):
    path = tmp_path / "mine.toml"
    path.write_text(edit(OWN))
    with pytest.raises(BadFile, match=rf"mine\.toml: .*{message}"):
        read_release(str(path))


def test_aliases_in_a_circle_are_refused(tmp_path: Path):
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text(f'same_as = "{b}"')
    b.write_text(f'same_as = "{a}@run=b"')
    with pytest.raises(BadFile, match=r"same_as leads from .*a\.toml to .*b\.toml to .*a\.toml, in a circle"):
        read_release(str(a))
    a.write_text(OWN)
    assert read_release(str(b)).chosen == {"run": "b"}


def test_data_beside_a_recipe_is_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    (tmp_path / "mine.toml").write_text(OWN)
    (tmp_path / "mine.graphs.toml").write_text("")
    assert known_releases() == ("mine",)
