"""Each file format: the layout of the release is written, read back, and run against a formula in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope, write_sae_lens
from layouts_more import write_openmoss, write_sparsify
from reading import H, agree, bfloat16, jump, one, only_directions
from safetensors.torch import load_file, save_file

from saeflow.errors import UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Norm, Preprocessing
from saeflow.sources.formats import load, save_release

# Gemma Scope


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_gemma_scope_is_jumprelu_without_b_dec_at_the_input(tmp_path: Path, lower: bool, pack: bool):
    a = arrays()
    d = one(write_gemma_scope(tmp_path, a, lower=lower, pack=pack))
    assert (d.site, d.tap, d.n_features, d.d_in) == (Site(24, Part.RES), Tap.RES, 7, 4)
    acts = jump(H @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)


@pytest.mark.parametrize(("part", "tap"), [("res", Tap.RES), ("mlp", Tap.MLP), ("att", Tap.Z)])
def test_gemma_scope_takes_its_site_from_the_path(tmp_path: Path, part: str, tap: Tap):
    d = one(write_gemma_scope(tmp_path, arrays(), part=part, layer=3))
    assert (str(d.site), d.tap) == (f"3/{part}", tap)


def test_gemma_scope_in_the_folders_of_the_hub_cache_has_its_site(tmp_path: Path):
    made = write_gemma_scope(tmp_path, arrays())
    snapshot = tmp_path / "models--google--gemma-scope-2b-pt-mlp" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    made.parents[2].rename(snapshot / "layer_24")
    assert str(one(snapshot / "layer_24" / "width_16k" / "average_l0_73").site) == "24/mlp"


def test_gemma_scope_away_from_its_folders_needs_a_site(tmp_path: Path):
    moved = write_gemma_scope(tmp_path / "x", arrays()).rename(tmp_path / "mine.npz")
    with pytest.raises(UnsupportedFormat, match=r"mine\.npz: the path gives no site.*site="):
        load(moved)
    assert one(moved, Site(2, Part.ATT)).tap is Tap.Z


def test_gemma_scope_2_is_read_by_its_config(tmp_path: Path):
    a = arrays()
    d = one(write_gemma_scope_2(tmp_path, a))
    acts = jump(H @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (str(d.site), d.tap) == ("7/res", Tap.RES)


@pytest.mark.parametrize(
    ("hook", "site", "tap"),
    [
        ("model.layers.7.self_attn.o_proj.input", "7/att", Tap.Z),
        ("model.layers.7.post_feedforward_layernorm.output", "7/mlp", Tap.MLP),
    ],
)
def test_gemma_scope_2_hooks(tmp_path: Path, hook: str, site: str, tap: Tap):
    d = one(write_gemma_scope_2(tmp_path, arrays(), hook=hook))
    assert (str(d.site), d.tap) == (site, tap)


def test_gemma_scope_2_without_a_config_is_told_by_its_path(tmp_path: Path):
    a = arrays()
    folder = write_gemma_scope_2(tmp_path, a)
    (folder / "config.json").unlink()
    assert (str(one(folder).site), one(folder / "params.safetensors").tap) == ("7/res", Tap.RES)
    moved = folder.rename(tmp_path / "mine")
    with pytest.raises(UnsupportedFormat, match=r"mine: there is no config\.json, and the path gives no site"):
        load(moved)


# Llama Scope


@pytest.mark.parametrize("norm", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("by_decoder_norm", [False, True])
def test_llama_scope_is_the_releases_own_inference_up_to_the_size_of_activations(
    tmp_path: Path, norm: float, by_decoder_norm: bool
):
    """The formula is that of the release's code: scale b_enc, compare, decode; not that of the reader."""
    a, theta = bfloat16(arrays()), 0.4
    told = {"sparsity_include_decoder_norm": by_decoder_norm}
    d = one(write_llama_scope(tmp_path, a, norm=norm, threshold=theta, **told))
    s = np.sqrt(4) / norm
    pre = H @ a.W_enc.T + a.b_enc / s
    compared = pre * np.linalg.norm(a.W_dec, axis=1) if by_decoder_norm else pre
    acts = np.where(compared > theta, pre, 0)
    agree(d, acts * s, acts @ a.W_dec + a.b_dec / s)
    assert (str(d.site), d.tap) == ("3/res", Tap.RES)


def test_llama_scope_without_thresholds_in_play_is_the_trained_map_on_scaled_input(tmp_path: Path):
    """Training saw s * h and its reconstruction is of s * h."""
    a, s = bfloat16(arrays()), np.float32(np.sqrt(4) / 5.0)
    d = one(write_llama_scope(tmp_path, a, norm=5.0, threshold=1e-6))
    acts = np.maximum((s * H) @ a.W_enc.T + a.b_enc, 0)
    agree(d, acts, (acts @ a.W_dec + a.b_dec) / s)


def test_llama_scope_takes_file_or_folder_and_hooks(tmp_path: Path):
    folder = write_llama_scope(tmp_path, arrays(), hook="blocks.3.hook_attn_out")
    for path in (folder, folder / "hyperparams.json", folder / "checkpoints" / "final.safetensors"):
        assert str(one(path).site) == "3/att"


def test_llama_scope_from_the_stream_to_the_mlp_and_bad_numbers_are_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match=r"hyperparams\.json: reads .* writes .* input of an MLP"):
        load(write_llama_scope(tmp_path / "a", arrays(), hook_point_out="blocks.3.hook_mlp_out"))
    wrong: list[tuple[str, Any]] = [
        ("jump_relu_threshold", None),
        ("d_model", 0),
        ("d_model", True),
        ("dataset_average_activation_norm", None),
    ]
    a = bfloat16(arrays())
    for number, (key, value) in enumerate(wrong):
        d = one(write_llama_scope(tmp_path / str(number), a, **{key: value}))
        only_directions(d, a.W_dec, rf"hyperparams\.json: {key} is {value}")


# sae-lens


AVERAGE = {"normalize_activations": "expected_average_only_in"}


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_a_checkpoint_of_sae_lens_is_read_with_the_factor_beside_it(tmp_path: Path, architecture: str, subtract: bool):
    a, c = arrays(), np.float32(0.37)
    folder = write_sae_lens(tmp_path, a, architecture=architecture, k=3, apply_b_dec_to_input=subtract, **AVERAGE)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    pre = (c * H - a.b_dec * subtract) @ a.W_enc.T + a.b_enc
    acts = jump(pre, a.threshold) if architecture == "jumprelu" else np.maximum(pre, 0)
    if architecture == "topk":
        acts = np.where(pre >= np.sort(pre, axis=1)[:, -3][:, None], acts, 0)
    agree(one(folder), acts, (acts @ a.W_dec + a.b_dec) / c)


def test_a_batch_topk_checkpoint_ranked_by_decoder_norm_scales_its_threshold_with_the_rows(tmp_path: Path):
    a, c = arrays(), np.float32(0.37)
    folder = write_sae_lens(tmp_path, a, architecture="batchtopk", rescale_acts_by_decoder_norm=True, **AVERAGE)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    path = folder / "sae_weights.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if name != "threshold"}
    save_file(tensors | {"topk_threshold": torch.tensor(0.8)}, path)
    norms = np.linalg.norm(a.W_dec, axis=1)
    acts = jump((c * H @ a.W_enc.T + a.b_enc) * norms, 0.8)
    agree(one(folder), acts / c, (acts @ (a.W_dec / norms[:, None]) + a.b_dec) / c)


@pytest.mark.parametrize("scaler", [None, '{"scaling_factor": null}', "{"])
def test_without_the_factor_of_its_normalisation_directions_are_known_and_sizes_are_not(
    tmp_path: Path, scaler: str | None
):
    a = arrays()
    folder = write_sae_lens(tmp_path / "saes", a, **AVERAGE)
    if scaler is not None:
        (folder / "activation_scaler.json").write_text(scaler)
    d = one(folder)
    only_directions(d, a.W_dec, r"cfg\.json: .*activation_scaler\.json.*fold_activation_norm_scaling_factor")
    for use in (lambda: d.decode(torch.ones(1, 7)), d.fold, lambda: d.W_enc):
        with pytest.raises(UnsupportedFormat, match="fold_activation_norm_scaling_factor"):
            use()
    with pytest.raises(UnsupportedFormat, match="fold_activation_norm_scaling_factor"):
        save_release(tmp_path / "own", {d.site: d}, name="x", model="")


def test_the_logarithm_of_thresholds_that_older_sae_lens_kept_is_read(tmp_path: Path):
    a = arrays()
    folder = write_sae_lens(tmp_path, a)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"log_threshold": tensors.pop("threshold").log()}, path)
    acts = jump(H @ a.W_enc.T + a.b_enc, a.threshold)
    agree(one(folder), acts, acts @ a.W_dec + a.b_dec)


def test_factors_of_finetuning_are_read_where_they_are_ones_and_refused_at_encoding_otherwise(tmp_path: Path):
    a = arrays()
    folder = write_sae_lens(tmp_path, a, architecture="standard", finetuning_scaling_factor=True)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"scaling_factor": torch.ones(7)}, path)
    acts = np.maximum(H @ a.W_enc.T + a.b_enc, 0)
    agree(one(folder), acts, acts @ a.W_dec + a.b_dec)
    save_file(tensors | {"scaling_factor": torch.full((7,), 1.1)}, path)
    only_directions(one(folder), a.W_dec, "finetuning_scaling_factor is set")


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "batchtopk", "topk"])
def test_sae_lens_architectures(tmp_path: Path, architecture: str, subtract: bool):
    a, k = arrays(), 3
    d = one(write_sae_lens(tmp_path, a, architecture=architecture, apply_b_dec_to_input=subtract, k=k))
    pre = (H - a.b_dec * subtract) @ a.W_enc.T + a.b_enc
    acts = jump(pre, a.threshold)
    if architecture == "standard":
        acts = np.maximum(pre, 0)
    if architecture == "topk":
        acts = np.where(pre >= np.sort(pre, axis=1)[:, -k][:, None], np.maximum(pre, 0), 0)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (str(d.site), d.tap) == ("5/res", Tap.RES)


def test_sae_lens_topk_ranked_by_decoder_norm(tmp_path: Path):
    a = arrays()
    d = one(write_sae_lens(tmp_path, a, architecture="topk", k=2, rescale_acts_by_decoder_norm=True))
    norms = np.linalg.norm(a.W_dec, axis=1)
    pre = (H @ a.W_enc.T + a.b_enc) * norms
    acts = np.where(pre >= np.sort(pre, axis=1)[:, -2][:, None], np.maximum(pre, 0), 0)
    agree(d, acts, (acts / norms) @ a.W_dec + a.b_dec)


@pytest.mark.parametrize(("told", "norm"), [("layer_norm", Norm.LAYER_NORM), ("constant_norm_rescale", Norm.RESCALE)])
def test_sae_lens_norms_a_token(tmp_path: Path, told: str, norm: Norm):
    a = arrays()
    d = one(write_sae_lens(tmp_path, a, normalize_activations=told, apply_b_dec_to_input=True))
    assert d.preprocessing == Preprocessing(subtract_b_dec=True, norm=norm)
    if norm is Norm.LAYER_NORM:
        shift, scale = H.mean(1, keepdims=True), H.std(1, ddof=1, keepdims=True)
        x = (H - shift) / (scale + 1e-5)
    else:
        shift, scale = np.zeros((50, 1), np.float32), np.linalg.norm(H, axis=1, keepdims=True) / 2
        x = H / scale
    acts = jump((x - a.b_dec) @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, (acts @ a.W_dec + a.b_dec) * scale + shift)


def test_sae_lens_on_centred_writing_weights_centres_its_input(tmp_path: Path):
    a = arrays()
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    d = one(write_sae_lens(tmp_path, a, metadata=metadata))
    acts = jump((H - H.mean(1, keepdims=True)) @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)


@pytest.mark.parametrize(
    ("metadata", "site", "tap"),
    [
        ({"hook_name": "blocks.5.hook_resid_post"}, "5/res", Tap.RES),
        ({"hook_name": "blocks.5.hook_resid_pre"}, "4/res", Tap.RES),
        ({"hook_name": "blocks.0.hook_mlp_out"}, "0/mlp", Tap.MLP),
        ({"hook_name": "blocks.11.hook_attn_out"}, "11/att", Tap.ATT),
        ({"hook_name": "blocks.11.attn.hook_z"}, "11/att", Tap.Z),
        # as TransformerLens 3 and 4 give them
        ({"hook_name": "blocks.5.hook_out"}, "5/res", Tap.RES),
        ({"hook_name": "blocks.5.hook_in"}, "4/res", Tap.RES),
        ({"hook_name": "blocks.5.mlp.hook_out"}, "5/mlp", Tap.MLP),
        ({"hook_name": "blocks.5.attn.hook_out"}, "5/att", Tap.ATT),
        ({"hook_name": "blocks.5.attn.o.hook_in"}, "5/att", Tap.Z),
        ({"hook_name": "blocks.5.ln2_post.hook_out", "model_name": "gemma-2-2b"}, "5/mlp", Tap.MLP),
        ({"hook_name": None, "hf_hook_name": "transformer.h.2"}, "2/res", Tap.RES),
        ({"hook_name": "odd", "hf_hook_name": "transformer.h.2.mlp.output"}, "2/mlp", Tap.MLP),
        ({"hook_name": "gpt_neox.layers.2.attention.dense.input"}, "2/att", Tap.Z),
        ({"hook_name": "model.layers.2.self_attn", "model_name": "llama"}, "2/att", Tap.ATT),
    ],
)
def test_hook_names(tmp_path: Path, metadata: dict[str, Any], site: str, tap: Tap):
    d = one(write_sae_lens(tmp_path, arrays(), metadata=metadata))
    assert (str(d.site), d.tap) == (site, tap)


@pytest.mark.parametrize(
    "metadata",
    [
        {"hook_name": "blocks.0.hook_resid_pre"},
        {"hook_name": "blocks.0.hook_in"},
        {"hook_name": "blocks.3.hook_resid_mid"},
        {"hook_name": "blocks.3.attn.q.hook_out"},
        {"hook_name": "blocks.3.mlp.out.hook_in"},
    ],
)
def test_hooks_that_are_no_site_are_refused_by_name(tmp_path: Path, metadata: dict[str, Any]):
    with pytest.raises(UnsupportedFormat, match=rf"cfg\.json: hook '{metadata['hook_name']}' .* is no site"):
        load(write_sae_lens(tmp_path, arrays(), metadata=metadata))


def test_a_site_can_be_given_where_the_hook_is_odd(tmp_path: Path):
    folder = write_sae_lens(tmp_path, arrays(), metadata={"hook_name": "odd"})
    assert str(one(folder, Site(1, Part.MLP)).site) == "1/mlp"


@pytest.mark.parametrize(
    "write",
    [
        lambda root, hook: write_sae_lens(root, arrays(), metadata={"hook_name": hook}),
        lambda root, hook: write_openmoss(root, arrays(), hooks=(hook, hook)),
        lambda root, hook: write_llama_scope(root, arrays(), hook=hook),
        lambda root, hook: write_gemma_scope_2(root, arrays(), hook=hook),
        lambda root, hook: write_sparsify(root, arrays(), hookpoint=hook),
    ],
    ids=["sae-lens", "openmoss", "llama-scope", "gemma-scope-2", "sparsify"],
)
@pytest.mark.parametrize(
    ("hook", "tap"),
    [
        ("blocks.3.attn.hook_z", Tap.Z),
        ("blocks.3.attn.o.hook_in", Tap.Z),
        ("model.layers.3.self_attn.o_proj.input", Tap.Z),
        ("transformer.h.3.attn.attention.out_proj.input", Tap.Z),
        ("model.layers.3.self_attn", Tap.ATT),
        ("model.layers.3.mlp.c_proj.input", Tap.ATT),
    ],
)
def test_a_site_that_is_given_leaves_what_is_read_there_to_the_hook(
    tmp_path: Path, write: Callable[[Path, str], Path], hook: str, tap: Tap
):
    folder = write(tmp_path, hook)
    assert [one(folder, Site(5, part)).tap for part in Part] == [
        tap if part is Part.ATT else Tap.of(part) for part in Part
    ]


@pytest.mark.parametrize(
    ("metadata", "config", "message"),
    [
        (
            {},
            {"architecture": "temporal"},
            "architecture 'temporal' is not supported. Supported: standard, jumprelu, topk, gated",
        ),
        ({}, {"normalize_activations": "covariance_whitening"}, r"fold_activation_whitening\(mean, "),
        ({"hook_head_index": 3}, {}, "hook_head_index is 3"),
        ({"hook_name_out": "blocks.5.hook_mlp_out"}, {}, "is no transcoder"),
    ],
)
def test_what_a_dictionary_cannot_do_is_refused(
    tmp_path: Path, metadata: dict[str, Any], config: dict[str, Any], message: str
):
    with pytest.raises(UnsupportedFormat, match=rf"cfg\.json: .*{message}"):
        load(write_sae_lens(tmp_path, arrays(), metadata=metadata, **config))
