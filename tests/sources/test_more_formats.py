"""sparsify, dictionary_learning, gated SAEs and older sae-lens: each layout against its formula in numpy."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays
from layouts_more import (
    CLASSES,
    Gate,
    dictionary_learning_state,
    gate,
    write_dictionary_learning,
    write_old_sae_lens,
    write_sae_lens_more,
    write_sparsify,
)
from reading import H, agree, jump, one, only_directions

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Norm, Preprocessing
from saeflow.sources.formats import discover, load
from saeflow.sources.formats.tensors import TorchFile
from saeflow.sources.library import load_dictionaries


def topk(pre: np.ndarray, k: int) -> np.ndarray:
    return np.where(pre >= np.sort(pre, axis=1)[:, -k][:, None], np.maximum(pre, 0), 0)


def gated(x: np.ndarray, g: Gate) -> np.ndarray:
    """The gate and the magnitude as two networks, as the paper writes them."""
    return np.where(x + g.b_gate > 0, np.maximum(np.exp(g.r_mag) * x + g.b_mag, 0), 0)


# sparsify


@pytest.mark.parametrize(
    ("hookpoint", "site", "tap"),
    [
        ("layers.3", "3/res", Tap.RES),
        ("layers.3.mlp", "3/mlp", Tap.MLP),
        ("layers.3.attention", "3/att", Tap.ATT),
        ("layers.10.self_attn", "10/att", Tap.ATT),
        ("h.2", "2/res", Tap.RES),
    ],
)
def test_sparsify_subtracts_b_dec_and_keeps_the_k_largest(tmp_path: Path, hookpoint: str, site: str, tap: Tap):
    a = arrays()
    d = one(write_sparsify(tmp_path, a, hookpoint=hookpoint))
    acts = topk((H - a.b_dec) @ a.W_enc.T + a.b_enc, 3)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (str(d.site), d.tap, d.activation) == (site, tap, TopK(3))


def test_sparsify_without_num_latents_is_an_expansion_of_the_width(tmp_path: Path):
    a = arrays(n_features=8)
    d = one(write_sparsify(tmp_path / "a", a, num_latents=0, expansion_factor=2))
    assert (d.n_features, d.d_in) == (8, 4)
    with pytest.raises(BadFile, match=r"cfg\.json: says 12 latents of width 4, .* holds 8 of width 4"):
        load(write_sparsify(tmp_path / "b", a, num_latents=0, expansion_factor=3))


@pytest.mark.parametrize(
    ("config", "run", "subtracts"),
    [
        ({"transcode": True}, None, False),
        ({}, {"transcode": True, "model": "HuggingFaceTB/SmolLM2-135M"}, True),
        ({}, None, True),  # told by its skip alone, as EleutherAI/skip-transcoder-Llama-3.2-1B-131k
    ],
)
def test_sparsify_skip_transcoders_read_the_mlps_input(
    tmp_path: Path, config: dict[str, Any], run: dict[str, Any] | None, subtracts: bool
):
    a = arrays()
    skip = np.random.default_rng(6).normal(size=(4, 4)).astype(np.float32)
    d = one(write_sparsify(tmp_path, a, hookpoint="layers.3.mlp", W_skip=skip, run=run, **config))
    acts = topk((H - a.b_dec * subtracts) @ a.W_enc.T + a.b_enc, 3)
    agree(d, acts, acts @ a.W_dec + a.b_dec + H @ skip.T)
    assert (str(d.site), d.tap, d.is_transcoder) == ("3/mlp", Tap.MLP_IN, True)


@pytest.mark.parametrize(
    ("hookpoint", "config", "message"),
    [
        ("layers.3", {"transcode": True}, "a transcoder at 3/res"),
        ("embed_tokens", {}, "hook 'embed_tokens' .* is no site"),
        ("layers.3.mlp.act", {}, r"hook 'layers\.3\.mlp\.act' .* is no site"),
    ],
)
def test_sparsify_that_a_dictionary_cannot_follow_is_refused(
    tmp_path: Path, hookpoint: str, config: dict[str, Any], message: str
):
    with pytest.raises(UnsupportedFormat, match=message):
        load(write_sparsify(tmp_path, arrays(), hookpoint=hookpoint, **config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, r"cfg\.json: activation 'groupmax'\..*Supported for them: activation topk"),
        ({"embed_skip": True}, "activation 'topk', embed_skip"),
        ({"k": 0}, r"cfg\.json: k is 0"),
    ],
)
def test_sparsify_with_another_encoder_has_directions(tmp_path: Path, config: dict[str, Any], message: str):
    a = arrays()
    only_directions(one(write_sparsify(tmp_path, a, **config)), a.W_dec, message)


def test_sparsify_of_several_seeds_is_at_the_hookpoint_and_a_pattern_chooses(tmp_path: Path):
    for seed in (1, 2):
        write_sparsify(tmp_path, arrays(seed), hookpoint=f"layers.3.mlp/seed{seed}")
    assert str(one(write_sparsify(tmp_path, arrays(), hookpoint="layers.0/seed7")).site) == "0/res"
    assert load_dictionaries(tmp_path, pattern="*/seed2").sites == (Site(3, Part.MLP),)
    np.testing.assert_array_equal(load(tmp_path, Site(3, Part.MLP), pattern="*/seed2").W_dec.numpy(), arrays(2).W_dec)


def test_a_release_of_sparsify_is_a_tree_of_hookpoints(tmp_path: Path):
    for hookpoint in ("layers.0", "layers.0.mlp", "layers.1"):
        write_sparsify(tmp_path, arrays(), hookpoint=hookpoint)
    assert [str(site) for site in discover(tmp_path).openers] == ["0/mlp", "0/res", "1/res"]


# dictionary_learning


@pytest.mark.parametrize("dict_class", CLASSES)
def test_dictionary_learning_classes(tmp_path: Path, dict_class: str):
    a, g = arrays(), gate()
    d = one(write_dictionary_learning(tmp_path, a, dict_class=dict_class, g=g))
    x = (H - a.b_dec) @ a.W_enc.T
    unshifted = H @ a.W_enc.T + a.b_enc
    acts = {
        "AutoEncoder": lambda: np.maximum(x + a.b_enc, 0),
        "AutoEncoderNew": lambda: np.maximum(unshifted, 0),
        "GatedAutoEncoder": lambda: gated(x, g),
        "JumpReluAutoEncoder": lambda: jump(unshifted, a.threshold),
        "AutoEncoderTopK": lambda: topk(x + a.b_enc, 3),
        "BatchTopKSAE": lambda: jump(x + a.b_enc, 0.3),
        "MatryoshkaBatchTopKSAE": lambda: jump(x + a.b_enc, 0.3),
    }[dict_class]()
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (str(d.site), d.tap) == ("3/res", Tap.RES)


@pytest.mark.parametrize("never", [-1.0, 0.0])
@pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_a_batch_topk_whose_threshold_was_never_set_has_directions_and_no_activations(
    tmp_path: Path, dict_class: str, never: float
):
    a = arrays()
    state = dictionary_learning_state(a, dict_class, gate()) | {"threshold": torch.tensor(never)}
    d = one(write_dictionary_learning(tmp_path, a, dict_class=dict_class, state=state))
    only_directions(d, a.W_dec, r"ae\.pt: the threshold of this BatchTopK is .*, so training never set it")


@pytest.mark.parametrize(
    ("submodule", "layer", "site"),
    [
        ("resid_post_layer_8", 8, "8/res"),
        ("mlp_out_layer_0", 0, "0/mlp"),
        ("attention_out_layer_2", 2, "2/att"),
        ("attn_out_layer11", 11, "11/att"),
    ],
)
def test_dictionary_learning_names_its_submodule(tmp_path: Path, submodule: str, layer: int, site: str):
    assert str(one(write_dictionary_learning(tmp_path, arrays(), submodule=submodule, layer=layer)).site) == site


def test_the_first_release_says_its_site_by_folders_alone(tmp_path: Path):
    """saprmarks/pythia-70m-deduped-saes: mlp_out_layer3/10_32768/ae.pt, config.json without a class."""
    folder = write_dictionary_learning(tmp_path / "x", arrays(), config={"dictionary_size": 7})
    there = tmp_path / "dictionaries" / "pythia-70m-deduped" / "mlp_out_layer3" / "10_32768"
    there.parent.mkdir(parents=True)
    folder.rename(there)
    assert str(one(there).site) == "3/mlp"
    (there / "config.json").unlink()
    assert str(one(there / "ae.pt").site) == "3/mlp"


@pytest.mark.parametrize(
    "trainer",
    [
        {"submodule_name": "resid_mid_layer_3"},
        {"submodule_name": "resid_pre_layer_3"},
        {"submodule_name": "resid_post_layer_3", "layer": 4},
        {},
    ],
)
def test_dictionary_learning_without_a_site_is_refused(tmp_path: Path, trainer: dict[str, Any]):
    config = {"trainer": {"dict_class": "AutoEncoder", **trainer}}
    folder = write_dictionary_learning(tmp_path, arrays(), config=config)
    with pytest.raises(UnsupportedFormat, match=r"give no site.*Pass site="):
        load(folder)
    assert str(one(folder, Site.parse("1/mlp")).site) == "1/mlp"


def test_an_input_of_a_submodule_is_no_site(tmp_path: Path):
    config = {"trainer": {"dict_class": "AutoEncoder", "submodule_name": "mlp_out_layer_3"}, "buffer": {"io": "in"}}
    with pytest.raises(UnsupportedFormat, match="io 'in' give no site"):
        load(write_dictionary_learning(tmp_path, arrays(), config=config))


def test_classes_that_are_not_one_sae_or_leave_doubt_are_refused(tmp_path: Path):
    config = {"trainer": {"dict_class": "CrossCoder", "submodule_name": "resid_post_layer_3"}}
    with pytest.raises(UnsupportedFormat, match=r"dict_class is 'CrossCoder'\. Supported: AutoEncoder"):
        load(write_dictionary_learning(tmp_path / "a", arrays(), config=config))
    config = {"trainer": {"submodule_name": "resid_post_layer_3"}}
    folder = write_dictionary_learning(tmp_path / "b", arrays(), dict_class="BatchTopKSAE", config=config)
    a = arrays()
    only_directions(one(folder), a.W_dec, r"of an AutoEncoderTopK and of a BatchTopKSAE alike.*trainer\.dict_class")
    state = dictionary_learning_state(arrays(), "BatchTopKSAE", gate())
    del state["threshold"]
    folder = write_dictionary_learning(tmp_path / "c", arrays(), dict_class="BatchTopKSAE", state=state)
    only_directions(one(folder), a.W_dec, "no tensor 'threshold'")


def test_names_of_a_compiled_module_are_read(tmp_path: Path):
    a = arrays()
    state = dictionary_learning_state(a, "AutoEncoder", gate())
    folder = write_dictionary_learning(tmp_path, a, state={f"_orig_mod.{name}": value for name, value in state.items()})
    np.testing.assert_array_equal(one(folder).W_dec.numpy(), a.W_dec)


# a .pt is a pickle


class Evil:
    """Unpickling this makes a folder, which stands for anything at all."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"bias": torch.zeros(4), "x": evil}])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path, wrap: Any):
    made = tmp_path / "made"
    folder = write_dictionary_learning(tmp_path, arrays(), state=wrap(Evil(made)))
    with pytest.raises(BadFile, match=r"ae\.pt: holds more than tensors, and loading that could run code"):
        load(folder)
    assert not made.exists()
    torch.load(folder / "ae.pt", weights_only=False)  # the file does what it says where it is trusted
    assert made.is_dir()


def test_a_bare_pickle_is_refused_before_anything_reads_it(tmp_path: Path):
    folder = write_dictionary_learning(tmp_path, arrays())
    (folder / "ae.pt").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(BadFile, match=r"ae\.pt: cannot be opened as a \.pt archive"):
        load(folder)
    assert not (tmp_path / "made").exists()


def test_what_is_no_dict_of_dense_tensors_is_refused(tmp_path: Path):
    states: list[tuple[Any, str]] = [
        ([torch.zeros(3)], "holds list, expected a dict of tensors"),
        ({}, "holds dict, expected a dict of tensors"),
        ({"bias": 3}, "entry 'bias' is int"),
        ({"bias": torch.eye(3).to_sparse()}, "'bias' is not dense|cannot be read as tensors"),
        ({"bias": torch.zeros(1).expand(1 << 40)}, r"\[1099511627776\] claims more than the \d+ bytes"),
    ]
    for number, (state, message) in enumerate(states):
        folder = write_dictionary_learning(tmp_path / str(number), arrays(), state=state or {"x": 1})
        torch.save(state, folder / "ae.pt")
        with pytest.raises(BadFile, match=rf"ae\.pt: .*({message})"):
            load(folder)


def test_a_compressed_archive_is_refused(tmp_path: Path):
    """So that a small file cannot unpack to a huge one."""
    folder = write_dictionary_learning(tmp_path, arrays())
    with zipfile.ZipFile(folder / "ae.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(BadFile, match=r"ae\.pt: member '.*' is compressed"):
        load(folder)


def test_a_file_that_changes_after_it_was_opened_is_noticed(tmp_path: Path):
    folder = write_dictionary_learning(tmp_path, arrays())
    file = TorchFile(folder / "ae.pt")
    torch.save({"bias": torch.zeros(9)}, folder / "ae.pt")
    for name in ("bias", "encoder.weight"):
        with pytest.raises(BadFile, match=rf"ae\.pt: tensor '{name}' is not what it was when opened"):
            file.read(name)


# gated, batchtopk in training, older sae-lens


@pytest.mark.parametrize("subtract", [False, True])
def test_sae_lens_gated_is_two_networks(tmp_path: Path, subtract: bool):
    a, g = arrays(), gate()
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_dec": a.b_dec}
    tensors |= {"b_gate": g.b_gate, "b_mag": g.b_mag, "r_mag": g.r_mag}
    d = one(write_sae_lens_more(tmp_path, tensors, architecture="gated", apply_b_dec_to_input=subtract))
    acts = gated((H - a.b_dec * subtract) @ a.W_enc.T, g)
    agree(d, acts, acts @ a.W_dec + a.b_dec)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [False, True])
def test_sae_lens_batchtopk_saved_in_training(tmp_path: Path, architecture: str, rescale: bool):
    a = arrays()
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    tensors["topk_threshold"] = np.array(0.6, dtype=np.float64)
    folder = write_sae_lens_more(
        tmp_path, tensors, architecture=architecture, rescale_acts_by_decoder_norm=rescale, k=3.0
    )
    norms = np.linalg.norm(a.W_dec, axis=1) if rescale else np.ones(7)
    acts = jump((H @ a.W_enc.T + a.b_enc) * norms, 0.6)
    agree(one(folder), acts, (acts / norms) @ a.W_dec + a.b_dec)


def test_sae_lens_before_version_6_is_read_as_sae_lens_reads_it(tmp_path: Path):
    a = arrays()
    d = one(write_old_sae_lens(tmp_path, a))
    shift, scale = H.mean(1, keepdims=True), H.std(1, ddof=1, keepdims=True)
    x = (H - shift) / (scale + 1e-5)
    acts = topk((x - a.b_dec) @ a.W_enc.T + a.b_enc, 3)
    agree(d, acts, (acts @ a.W_dec + a.b_dec) * scale + shift)
    assert d.preprocessing == Preprocessing(subtract_b_dec=True, norm=Norm.LAYER_NORM)
    assert str(d.site) == "0/res"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_activations": True}, "expected_average_only_in"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu'"),
    ],
)
def test_older_configurations_that_need_more_have_directions(tmp_path: Path, config: dict[str, Any], message: str):
    a = arrays()
    only_directions(one(write_old_sae_lens(tmp_path, a, **config)), a.W_dec, rf"cfg\.json: .*{message}")


def test_an_older_sae_on_one_head_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match=r"cfg\.json: hook_head_index is 3"):
        load(write_old_sae_lens(tmp_path, arrays(), hook_point_head_index=3))
