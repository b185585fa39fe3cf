"""Dictionaries of objects in memory: they encode as the object does, and everything takes them.

Objects of other libraries are made where those are installed beside saeflow, and skipped elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import D_MODEL, TEXTS, tiny_model
from torch import Tensor, nn

import saeflow as sf
from saeflow.errors import InvalidArgument, UnsupportedFormat
from saeflow.ids import FeatureId, Part, Site
from saeflow.interventions import Add, Rescale
from saeflow.sources.activations import Function, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Point, Tap, View
from saeflow.sources.formats import save_release
from saeflow.sources.formats.sae_lens_writer import write_sae_lens

F, D = 11, 6
RES = Site(3, Part.RES)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def hidden(n: int = 20, d: int = D, seed: int = 1) -> Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def fill(module: nn.Module, seed: int = 0) -> None:
    """Random values in every parameter, thresholds positive."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
            if "threshold" in name and "log" not in name:
                parameter.abs_()


def encodes_as(found: sf.Dictionary, acts: Tensor, h: Tensor) -> None:
    """To 1e-5, with features on and off."""
    mine, theirs = found.encode(h), acts.detach()
    assert 0 < float((theirs != 0).float().mean()) < 1
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def tensors(seed: int = 0, d: int = D) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (F, d), "b_enc": (F,), "W_dec": (F, d), "b_dec": (d,)}
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


class Own(nn.Module):
    """An autoencoder of one's own: linear layers, and an encode that subtracts the decoder's bias or does not."""

    def __init__(self, *, less: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.less = nn.Linear(D, F), nn.Linear(F, D), less
        fill(self)

    def encode(self, h: Tensor) -> Tensor:
        return torch.relu(self.encoder(h - self.decoder.bias if self.less else h)) ** 2


def squared(pre: Tensor) -> Tensor:
    return torch.relu(pre) ** 2


# Plain tensors and modules


@pytest.mark.parametrize("columns", [False, True])
def test_plain_tensors_with_a_function_whichever_way_round_they_are(columns: bool):
    t, h = tensors(), hidden()
    given = {name: x.T if columns and x.ndim == 2 else x for name, x in t.items()}
    expected = torch.relu(h @ t["W_enc"].T + t["b_enc"])
    found = sf.dictionaries_from({"3/res": given}, activation=torch.relu)
    assert list(found) == [RES]
    encodes_as(found[RES], expected, h)
    torch.testing.assert_close(found[RES].decode(expected), expected @ t["W_dec"] + t["b_dec"])
    assert isinstance(found[RES].activation, ReLU)
    # numpy's arrays, in float64, with an activation of their own and a bias that is subtracted
    told: dict[str, Any] = {name: x.double().numpy() for name, x in given.items()}
    less = sf.dictionaries_from({RES: told | {"activation": TopK(3), "subtract_b_dec": True}})[RES]
    encodes_as(less, TopK(3)((h - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]), h)


@pytest.mark.parametrize("less", [False, True])
def test_a_module_is_asked_whether_it_subtracts_its_bias(less: bool):
    module, h = Own(less=less), hidden()
    found = sf.dictionaries_from({"layers.3.mlp": module}, activation=squared)
    d = found[Site(3, Part.MLP)]
    assert d.preprocessing.subtract_b_dec is less
    assert d.point == Point(3, Tap.MLP, View.MODULE)
    encodes_as(d, module.encode(h), h)
    with pytest.raises(InvalidArgument, match=r"the Own for 3/res encodes otherwise than its weights say: \d+ of 264"):
        sf.dictionaries_from({"3/res": module}, activation=torch.relu)[RES]


def test_a_function_sees_all_features_of_a_token_wherever_some_are_edited_or_watched():
    def softest(pre: Tensor) -> Tensor:
        return pre.softmax(dim=-1) * (pre > 0)

    model, t = tiny_model("llama"), tensors(d=D_MODEL)
    found = sf.dictionaries_from({"1/res": t}, activation=softest)
    d, site = found[Site(1, Part.RES)], Site(1, Part.RES)
    tokens = model.tokenize(TEXTS[:1])
    h = model.capture(tokens, [site])[site]
    acts = softest(h @ t["W_enc"].T + t["b_enc"])
    torch.testing.assert_close(d.encode(h), acts, atol=1e-5, rtol=1e-5)
    some = torch.tensor([4, 2])
    torch.testing.assert_close(d.encode_only(h, some), acts[..., some], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(d.rows(3, 8).W_dec, t["W_dec"][3:8])
    with model.intervening([Rescale((FeatureId(site, 4),), 0.0)], found):
        edited = model.capture(tokens, [site])[site]
    torch.testing.assert_close(edited, h - acts[..., 4:5] * t["W_dec"][4], atol=1e-4, rtol=1e-4)
    assert isinstance(d.activation, Function)
    assert d.to(dtype=torch.float64).encode(h.double()).dtype == torch.float64


def test_a_function_of_python_is_written_into_no_file(tmp_path):
    found = sf.dictionaries_from({"3/res": tensors()}, activation=squared)
    with pytest.raises(InvalidArgument, match="a function of Python, which no file can say"):
        save_release(tmp_path / "own", found, name="x", model="y")
    with pytest.raises(UnsupportedFormat, match="a function of Python, which no file can say"):
        write_sae_lens(tmp_path / "lens", found[RES])
    assert not (tmp_path / "lens").exists()
    known = sf.dictionaries_from({"3/res": tensors()}, activation=JumpReLU(torch.ones(F)))
    save_release(tmp_path / "own", known, name="x", model="y", dtype=torch.float32)
    again = sf.load_dictionaries(tmp_path / "own")[RES]
    assert torch.equal(again.encode(hidden()), known[RES].encode(hidden()))


def test_without_an_activation_directions_are_known_and_nothing_is_encoded():
    found = sf.dictionaries_from({"3/res": tensors()})[RES]
    assert found.directions().shape == (F, D)
    with pytest.raises(UnsupportedFormat, match=r"nothing says its activation.*Give activation="):
        found.encode(hidden())


def test_every_kind_of_place_is_understood():
    wide = tensors(d=32)
    found = sf.dictionaries_from(
        {(1, Tap.Z): wide, Point(2, Tap.MLP_IN): tensors(), "blocks.4.hook_resid_post": tensors(2)},
        activation=torch.relu,
    )
    assert [(str(site), found[site].tap) for site in found] == [
        ("1/att", Tap.Z),
        ("2/mlp", Tap.MLP_IN),
        ("4/res", Tap.RES),
    ]
    again = sf.dictionaries_from([found["4/res"], found["2/mlp"]], model="me/mine")
    assert again["4/res"] is found["4/res"]
    assert again.model == "me/mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is no object"),
        ([tensors()], "the dict does not say which tensor of which layer"),
        ({"3/res": 5}, "the int for 3/res is no module and no mapping of tensors"),
        (
            {"3/res": {"W_enc": torch.ones(4, 4), "W_dec": torch.ones(4, 4)}},
            "do not tell whether its rows or its columns",
        ),
        ({"3/res": {"W_enc": torch.ones(F, D)}}, "the dict for 3/res holds W_enc. What can be read"),
        ({"3/res": tensors() | {"gate": torch.ones(F)}}, "holds .*gate.*More is allowed beside an encode"),
        ({"3/res": tensors() | {"b_dec": "no"}}, "holds something that is no tensor"),
        ({"3/res": tensors() | {"b_enc": torch.ones(9)}}, "do not tell whether"),
        ({"3/res": tensors(), "layers.3": tensors()}, "two objects are at 3/res; the second is the dict for layers.3"),
    ],
)
def test_what_leaves_something_open_is_refused(given: Any, said: str):
    with pytest.raises(InvalidArgument, match=said):
        sf.dictionaries_from(given, activation=torch.relu)
    with pytest.raises(UnsupportedFormat, match=r"hook 'somewhere' .* is no site"):
        sf.dictionaries_from({"somewhere": tensors()})


def test_what_is_float32_is_shared_and_other_dtypes_are_read_as_float32():
    t = tensors()
    found = sf.dictionaries_from({"3/res": t}, activation=torch.relu)[RES]
    assert found.W_enc.data_ptr() == t["W_enc"].data_ptr()
    half = sf.dictionaries_from({"3/res": Own(less=True).bfloat16()}, activation=squared)[RES]
    assert half.W_enc.dtype == torch.float32


def test_objects_in_memory_go_through_the_whole_method(tmp_path):
    """An atlas, a graph, a certified pair, an edit and a steered text from plain tensors."""
    model = tiny_model("llama")
    chain = [tensors(0, D_MODEL)]
    order = [int(i) for i in np.random.default_rng(0).permutation(F)]
    chain.append({name: x[order] if len(x) == F else x for name, x in chain[0].items()})
    found = sf.dictionaries_from({"0/res": chain[0], "1/res": chain[1]}, activation=torch.relu, model="me/mine")
    atlas = sf.build_atlas(found, out=tmp_path / "atlas")
    graph = sf.trace("1/res/4", atlas)
    assert f"0/res/{order[4]}" in {str(node.feature) for node in graph.nodes}
    feature, site = FeatureId("1/res/4"), Site(1, Part.RES)
    tokens = model.tokenize(TEXTS[:1])
    plain = model.capture(tokens, [site])[site]
    with model.intervening([Add({feature: 2.0})], found):
        moved = model.capture(tokens, [site])[site]
    torch.testing.assert_close(moved, plain + 2 * found[site].directions()[4], atol=1e-4, rtol=1e-4)
    with pytest.raises(InvalidArgument, match="put together in memory"):
        found.__reduce__()


# Objects of other libraries


SAE_LENS = ["Standard", "Gated", "JumpReLU", "TopK"]


def of_sae_lens(kind: str, hook: str = "blocks.3.hook_resid_post", **told: Any) -> Any:
    from sae_lens import saes
    from sae_lens.saes.sae import SAEMetadata

    told = {"d_in": D, "d_sae": F, "device": "cpu", "dtype": "float32", **told} | ({"k": 3} if kind == "TopK" else {})
    config = getattr(saes, f"{kind}SAEConfig")(**told)
    config.metadata = SAEMetadata(model_name="gpt2", hook_name=hook, prepend_bos=False)
    sae = getattr(saes, f"{kind}SAE")(config)
    fill(sae)
    return sae


@needs("sae_lens")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", [{}, {"apply_b_dec_to_input": False}, {"normalize_activations": "layer_norm"}])
@pytest.mark.parametrize("kind", SAE_LENS)
def test_an_sae_of_sae_lens_encodes_the_same_at_the_site_it_names(kind: str, told: dict[str, Any]):
    sae, h = of_sae_lens(kind, **told), hidden()
    found = sf.dictionaries_from([sae])
    acts = sae.encode(h)
    encodes_as(found[RES], acts.to_dense() if acts.layout is not torch.strided else acts, h)
    assert (list(found), found.model, found.prepend_bos) == ([RES], "gpt2", False)
    assert list(sf.dictionaries_from({"5/res": sae})) == [Site(5, Part.RES)]


@needs("sae_lens")
@pytest.mark.filterwarnings("ignore")
def test_an_sae_on_the_outputs_of_heads_reads_z():
    sae, h = of_sae_lens("Standard", "blocks.3.attn.hook_z", reshape_activations="hook_z"), hidden()
    d = sf.dictionaries_from([sae])["3/att"]
    assert d.tap is Tap.Z
    encodes_as(d, sae.encode(h.view(-1, 2, D // 2)), h)


@needs("sae_lens")
@pytest.mark.filterwarnings("ignore")
def test_a_factor_that_sae_lens_has_not_folded_yet_leaves_directions_alone():
    sae = of_sae_lens("Standard", normalize_activations="expected_average_only_in")
    d = sf.dictionaries_from([sae])["3/res"]
    torch.testing.assert_close(d.W_dec, sae.W_dec.detach())
    with pytest.raises(UnsupportedFormat, match="whose factor is not in the folder"):
        d.encode(hidden())
    sae.fold_activation_norm_scaling_factor(0.4)
    encodes_as(sf.dictionaries_from([sae])["3/res"], sae.encode(hidden()), hidden())


@needs("sparsify")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", [{}, {"transcode": True}, {"transcode": True, "skip_connection": True}])
def test_coders_of_sparsify_encode_the_same_by_hookpoint_or_site(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", lambda fn=None, **_: fn if fn is not None else (lambda g: g))
    from sparsify import SparseCoder, SparseCoderConfig

    coder, h = SparseCoder(D, SparseCoderConfig(k=3, num_latents=F, **told)), hidden()
    fill(coder)
    acts = coder.encode(h)
    dense = torch.zeros(len(h), F).scatter_(-1, acts.top_indices, acts.top_acts)
    for key, view in (("layers.3.mlp", View.MODULE), ("3/mlp", View.OWN)):
        d = sf.dictionaries_from({key: coder})["3/mlp"]
        encodes_as(d, dense, h)
        assert d.point == Point(3, Tap.MLP_IN if told else Tap.MLP, view)
    with pytest.raises(InvalidArgument, match="does not say which tensor of which layer"):
        sf.dictionaries_from([coder])


def of_sparsify() -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    return SparseCoder(D_MODEL, SparseCoderConfig(k=3, num_latents=F))


def of_dictionary_learning() -> Any:
    from dictionary_learning.dictionary import JumpReluAutoEncoder

    return JumpReluAutoEncoder(D_MODEL, F)


def of_openmoss() -> Any:
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    hooks = dict.fromkeys(("hook_point_in", "hook_point_out"), "blocks.1.hook_resid_post")
    made = SparseAutoEncoder(SAEConfig(**hooks, d_model=D_MODEL, expansion_factor=1, act_fn="relu"))
    made.set_dataset_average_activation_norm({"blocks.1.hook_resid_post": 7.0})
    return made


LIBRARIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "sae_lens": ("sae-lens", lambda: of_sae_lens("JumpReLU", d_in=D_MODEL)),
    "sparsify": ("eai-sparsify", of_sparsify),
    "dictionary_learning": ("dictionary-learning", of_dictionary_learning),
    "llamascopium": ("llamascopium", of_openmoss),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", [pytest.param(name, marks=needs(name)) for name in LIBRARIES])
def test_objects_of_every_library_give_a_graph_and_steer(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
):
    monkeypatch.setattr(torch, "compile", lambda fn=None, **_: fn if fn is not None else (lambda g: g))
    package, make = LIBRARIES[library]
    record_property(package, version(package))
    one = make()
    fill(one)
    sites = [Site(layer, Part.RES) for layer in (0, 1)]
    found = sf.dictionaries_from(dict.fromkeys(sites, one), model="me/mine")
    graph = sf.trace("1/res/4", sf.build_atlas(found, out=tmp_path / "atlas"))
    assert "0/res/4" in {str(node.feature) for node in graph.nodes}
    model, feature = tiny_model("llama"), FeatureId("1/res/4")
    tokens = model.tokenize(TEXTS[:1])
    plain = model.capture(tokens, sites[1:])[sites[1]]
    with model.intervening([Add({feature: 2.0})], found):
        moved = model.capture(tokens, sites[1:])[sites[1]]
    torch.testing.assert_close(moved, plain + 2 * found[sites[1]].directions()[4], atol=1e-4, rtol=1e-4)


LEARNED = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"]


@needs("dictionary_learning")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*LEARNED, "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_autoencoders_of_dictionary_learning_encode_the_same(name: str):
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    of = {"AutoEncoderTopK": top_k, "BatchTopKSAE": batch_top_k, "MatryoshkaBatchTopKSAE": matryoshka_batch_top_k}
    more: dict[str, Any] = {} if name in LEARNED else {"k": 3}
    more |= {"group_sizes": [4, F - 4]} if name.startswith("Matryoshka") else {}
    module, h = getattr(of.get(name, dictionary), name)(D, F, **more), hidden()
    fill(module)
    if "Batch" in name:
        module.threshold.fill_(0.7)
    encodes_as(sf.dictionaries_from({"3/res": module})[RES], module.encode(h), h)


@needs("dictionary_learning")
@pytest.mark.filterwarnings("ignore")
def test_an_object_that_was_told_to_encode_otherwise_is_refused():
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE

    module = MatryoshkaBatchTopKSAE(D, F, 3, [4, F - 4])
    fill(module)
    module.threshold.fill_(0.7)
    module.active_groups = 1
    with pytest.raises(InvalidArgument, match="MatryoshkaBatchTopKSAE for 3/res encodes otherwise"):
        sf.dictionaries_from({"3/res": module})[RES]


@needs("llamascopium")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("function", ["relu", "jumprelu", "topk"])
def test_dictionaries_of_openmoss_encode_the_same_on_plain_hidden_states(function: str, by_norm: bool):
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder

    hook = "blocks.3.hook_resid_post"
    config = SAEConfig(
        hook_point_in=hook,
        hook_point_out=hook,
        d_model=D,
        expansion_factor=2,
        act_fn=function,
        sparsity_include_decoder_norm=by_norm,
        top_k=3,
    )
    made, h = SparseAutoEncoder(config), hidden()
    fill(made)
    made.set_dataset_average_activation_norm({hook: 7.0})
    acts = made.encode(made.normalize_activations({hook: h})[hook])
    ranked = made.decoder_norm() if function == "topk" and by_norm else 1
    encodes_as(sf.dictionaries_from([made])[RES], acts * ranked, h)
