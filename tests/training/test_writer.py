"""sae-lens folders: written and read back the same, opened by sae-lens where it is installed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from saeflow.errors import InvalidArgument, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.activations import BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import ARCHITECTURES, Point, Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing
from saeflow.sources.formats import load, save_release
from saeflow.sources.formats.hook_names import site_of_hook
from saeflow.sources.formats.sae_lens_writer import hf_hook, lens_hook, write_sae_lens, write_sae_lens_release
from saeflow.sources.library import load_dictionaries

D_IN, D_OUT, N = 6, 5, 20


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def dictionary(site="3/res", tap=Tap.RES, activation=None, *, preprocessing=None, skip=False):
    d_out = D_OUT if tap.is_read_only else D_IN
    return Dictionary(
        Site.parse(site),
        tap=tap,
        W_enc=draw(N, D_IN),
        b_enc=draw(N),
        W_dec=draw(N, d_out),
        b_dec=draw(d_out),
        activation=activation or JumpReLU(draw(N).abs()),
        preprocessing=preprocessing or Preprocessing(),
        W_skip=draw(d_out, D_IN) if skip else None,
    )


PLAIN = {
    "jumprelu": dictionary(),
    "relu": dictionary(activation=ReLU()),
    "topk": dictionary(activation=TopK(3)),
    "batchtopk": dictionary(activation=BatchTopK(torch.tensor(0.4))),
    "attention": dictionary("2/att", Tap.ATT),
    "mlp": dictionary("2/mlp", Tap.MLP),
    "subtracts b_dec": dictionary(preprocessing=Preprocessing(subtract_b_dec=True)),
    "layer norm": dictionary(preprocessing=Preprocessing(norm=Norm.LAYER_NORM)),
    "rescale": dictionary(activation=TopK(3), preprocessing=Preprocessing(norm=Norm.RESCALE)),
    "transcoder": dictionary("2/mlp", Tap.MLP_IN),
    "relu transcoder": dictionary("2/mlp", Tap.MID, ReLU()),
    "skip transcoder": dictionary("2/mlp", Tap.MLP_IN, skip=True),
    "relu skip transcoder": dictionary("2/mlp", Tap.MLP_IN, ReLU(), skip=True),
}
CASES = PLAIN | {
    "z": dictionary("2/att", Tap.Z),
    "centred": dictionary(preprocessing=Preprocessing(center=True)),
    "transcoder before the gain": dictionary("2/mlp", Tap.MID, preprocessing=Preprocessing(norm=Norm.RESCALE)),
}
X = 2 * draw(40, D_IN, seed=9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "gpt_neox", None])
def test_what_is_written_is_read_back_the_same(tmp_path, name, family):
    if name == "transcoder before the gain" and family in ("gpt2", "gpt_neox"):
        pytest.skip("known for RMSNorm alone")
    d = CASES[name]
    model_name = {"gemma2": "google/gemma-2-2b", "gemma3": "google/gemma-3-1b-pt"}.get(family, "some/llama")
    write_sae_lens(tmp_path / "one", d, model_name=model_name, architecture=family and ARCHITECTURES[family])
    again = load(tmp_path / "one")
    assert (again.site, again.tap, again.preprocessing) == (d.site, d.tap, d.preprocessing)
    acts = d.encode(X)
    assert 0 < float((acts > 0).float().mean()) < 1
    torch.testing.assert_close(again.encode(X), acts, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.decode(acts, X), d.decode(acts, X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("ignore")
def test_sae_lens_opens_it_and_encodes_the_same(tmp_path, name):
    sae_lens = pytest.importorskip("sae_lens", reason="sae-lens is not installed: pip install -e '.[train]'")
    d = PLAIN[name]
    write_sae_lens(tmp_path, d, model_name="some/llama", architecture=ARCHITECTURES["llama"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = sae_lens.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        acts, out = sae.encode(X), sae(X)
    assert 0 < float((acts > 0).float().mean()) < 1
    torch.testing.assert_close(acts, d.encode(X), rtol=0, atol=1e-5)
    torch.testing.assert_close(out, d.decode(d.encode(X), X), rtol=0, atol=1e-5)
    assert sae.cfg.metadata.hook_name == lens_hook(Point(d.site.layer, d.tap))
    assert sae.cfg.metadata.model_name == "some/llama"


def test_the_skip_of_an_autoencoder_has_no_place_there_and_is_never_dropped(tmp_path):
    for activation in (TopK(3), ReLU(), JumpReLU(draw(N).abs())):
        made = dictionary("2/mlp", Tap.MLP, activation, skip=True)
        with pytest.raises(UnsupportedFormat, match=r"at 2/mlp adds a linear skip .*save_release"):
            write_sae_lens(tmp_path, made)
    assert not list(tmp_path.iterdir())
    save_release(tmp_path, {made.site: made}, name="x", model="", dtype=torch.float32)
    back = load_dictionaries(tmp_path)[made.site]
    torch.testing.assert_close(back.decode(back.encode(X), X), made.decode(made.encode(X), X), rtol=0, atol=0)


def test_a_topk_transcoder_has_no_architecture_there(tmp_path):
    with pytest.raises(UnsupportedFormat, match=r"transcoder at 2/mlp .activation topk.* Train it with batchtopk"):
        write_sae_lens(tmp_path, dictionary("2/mlp", Tap.MLP_IN, TopK(3)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", sorted(set(ARCHITECTURES) - {"gemma3"}))
@pytest.mark.parametrize("tap", [Tap.RES, Tap.ATT, Tap.MLP, Tap.Z])
def test_hooks_of_both_languages_mean_the_same_place(family, tap):
    point = Point(7, tap)
    model = "google/gemma-2-2b" if family.startswith("gemma") else "some/model"
    named = site_of_hook(hf_hook(point, ARCHITECTURES[family]), model, "here")
    assert named == site_of_hook(lens_hook(point), model, "here")
    assert named == (Site(7, tap.part), tap)


def test_hooks_are_those_of_gemma_scope_2():
    gemma = ARCHITECTURES["gemma3_text"]
    assert hf_hook(Point(7, Tap.Z), gemma) == "model.layers.7.self_attn.o_proj.input"
    assert hf_hook(Point(7, Tap.RES), gemma) == "model.layers.7.output"
    assert hf_hook(Point(7, Tap.ATT), gemma) == "model.layers.7.post_attention_layernorm.output"


def test_a_release_is_a_folder_a_site_that_opens_as_a_whole(tmp_path):
    made = {d.site: d for d in (dictionary("0/res"), dictionary("0/att", Tap.Z), dictionary("1/mlp", Tap.MLP_IN))}
    write_sae_lens_release(tmp_path / "r", made, model_name="some/llama", metadata={Site.parse("0/res"): {"l0": 3.5}})
    opened = load_dictionaries(tmp_path / "r")
    assert {str(site): opened[site].tap for site in opened.sites} == {"0/att": "z", "0/res": "res", "1/mlp": "mlp_in"}
    told = json.loads((tmp_path / "r" / "0.res" / "cfg.json").read_text())
    assert told["metadata"]["l0"] == 3.5
    assert set(load_file(tmp_path / "r" / "0.res" / "sae_weights.safetensors")) == {
        "W_enc",
        "W_dec",
        "b_enc",
        "b_dec",
        "threshold",
    }


def test_nothing_to_write_and_odd_metadata_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="no dictionary to write"):
        write_sae_lens_release(tmp_path, {})
    for odd in (float("nan"), object()):
        with pytest.raises(InvalidArgument, match="metadata of 3/res cannot be written as JSON"):
            write_sae_lens(tmp_path, dictionary(), metadata={"odd": odd})


def test_a_folder_of_training_says_its_model_and_one_of_others_does_not(tmp_path):
    site = Site.parse("3/res")
    made = Dictionary(
        site,
        tap=Tap.RES,
        W_enc=torch.randn(7, 4),
        b_enc=torch.zeros(7),
        W_dec=torch.randn(7, 4),
        b_dec=torch.zeros(4),
        activation=ReLU(),
    )
    for name, metadata in (("ours", {"saeflow_version": "0"}), ("theirs", {})):
        write_sae_lens_release(
            tmp_path / name, {site: made}, model_name="demo", architecture=None, metadata={site: metadata}
        )
    assert load_dictionaries(tmp_path / "ours").model == "demo"
    assert load_dictionaries(tmp_path / "theirs").model == ""
