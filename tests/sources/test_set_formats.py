"""circuit-tracer, OpenMOSS, Qwen Scope, Goodfire and files in parts: each layout against its formula in numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays, write_gemma_scope, write_sae_lens
from layouts_more import (
    transcoder_arrays,
    write_circuit_tracer,
    write_goodfire,
    write_openmoss,
    write_qwen_scope,
    write_sae_lens_more,
)
from reading import H, agree, jump, one
from safetensors.torch import load_file, save_file

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.formats import discover, load
from saeflow.sources.library import load_dictionaries


def topk(pre: np.ndarray, k: int) -> np.ndarray:
    return np.where(pre >= np.sort(pre, axis=1)[:, -k][:, None], np.maximum(pre, 0), 0)


# circuit-tracer


@pytest.mark.parametrize(
    ("read", "written", "tap"),
    [
        ("mlp.hook_in", "hook_mlp_out", Tap.MLP_IN),
        ("mlp.hook_in", "mlp.hook_out", Tap.MLP_IN),
        ("hook_resid_mid", "hook_mlp_out", Tap.MID),
        ("ln2.hook_normalized", "hook_mlp_out", Tap.MID),
    ],
)
@pytest.mark.parametrize("activation", ["relu", "topk", ""])
def test_a_set_of_circuit_tracer_is_a_transcoder_a_layer(
    tmp_path: Path, read: str, written: str, tap: Tap, activation: str
):
    layers = [transcoder_arrays(seed)[0] for seed in (0, 1)]
    skip = transcoder_arrays()[1]
    told = {"activation": activation, "k": 3} if activation else {}
    folder = write_circuit_tracer(
        tmp_path, layers, read=read, written=written, skip=skip, threshold=not activation, **told
    )
    x = H / np.sqrt((H**2).mean(1, keepdims=True)) if read.startswith("ln2") else H
    for (site, d), a in zip(load_dictionaries(folder).items(), layers, strict=True):
        pre = x @ a.W_enc.T + a.b_enc
        acts = {"relu": lambda p, _: np.maximum(p, 0), "topk": lambda p, _: topk(p, 3), "": jump}[activation](
            pre, a.threshold
        )
        agree(d, acts, acts @ a.W_dec + a.b_dec + x @ skip.T)
        assert (site.part.value, d.tap, d.is_transcoder) == ("mlp", tap, True)


def test_a_file_of_a_set_is_one_dictionary_and_a_pattern_picks_among_them(tmp_path: Path):
    folder = write_circuit_tracer(tmp_path, [arrays(0), arrays(1), arrays(2)])
    assert str(one(folder / "layer_1.safetensors").site) == "1/mlp"
    assert str(one(folder, Site.parse("2/mlp")).site) == "2/mlp"
    assert [str(site) for site in discover(folder, "layer_[02].*").openers] == ["0/mlp", "2/mlp"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"layer_0\.safetensors: no config\.yaml lies beside it"),
        ({"written": "hook_resid_post"}, "Transcoders are read that lead from the input of an MLP"),
        ({"written": "mlp.hook_mid", "model": "google/gemma-2-2b"}, r"mlp\.hook_mid"),
        ({"read": "[a, b]"}, "blocks.0.None"),
    ],
)
def test_a_set_that_says_no_site_is_refused(tmp_path: Path, config: dict[str, str] | None, message: str):
    folder = write_circuit_tracer(tmp_path, [arrays()], **(config or {}))
    if config is None:
        (folder / "config.yaml").unlink()
    with pytest.raises(UnsupportedFormat, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "a: !!python/name:os.system", "[" * 5000, "x" * (2 << 20)])
def test_a_config_that_is_no_object_is_a_bad_file(tmp_path: Path, text: str):
    folder = write_circuit_tracer(tmp_path, [arrays()])
    (folder / "config.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"config\.yaml"):
        load(folder)


@pytest.mark.parametrize("name", ["W_dec_0", "W_enc_0", "params_layer_0"])
def test_cross_layer_transcoders_are_refused_and_spoil_nothing_else(tmp_path: Path, name: str):
    clt = tmp_path / "clt"
    clt.mkdir()
    save_file({name: torch.randn(7, 3, 4)}, clt / f"{name}.safetensors")
    with pytest.raises(UnsupportedFormat, match=r"cross-layer transcoder, .* circuit-tracer reads these"):
        load(tmp_path)
    write_gemma_scope(tmp_path, arrays())
    found = discover(tmp_path)
    assert [str(site) for site in found.openers] == ["24/res"]
    assert list(found.left_out) == [f"clt/{name}.safetensors"]


# OpenMOSS


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("function", ["relu", "jumprelu", "topk"])
def test_openmoss_reads_hidden_states_of_the_average_norm_of_its_data(
    tmp_path: Path, former: bool, by_norm: bool, function: str
):
    a = arrays()
    folder = write_openmoss(tmp_path, a, former=former, act_fn=function, top_k=3, sparsity_include_decoder_norm=by_norm)
    d, s = one(folder), 2 / 7.0  # sqrt(d_model) / norm
    norms = np.linalg.norm(a.W_dec, axis=1) if by_norm else np.ones(7)
    pre = (s * H @ a.W_enc.T + a.b_enc) * norms
    acts = {"relu": np.maximum(pre, 0), "jumprelu": jump(pre, a.threshold), "topk": topk(pre, 3)}[function] / norms
    ranked = norms if function == "topk" else 1  # a topk is read with unit rows
    agree(d, acts * ranked, (acts @ a.W_dec + a.b_dec) / s)
    assert (str(d.site), d.tap) == ("7/res", Tap.RES)


def test_an_openmoss_transcoder_writes_in_units_of_what_it_writes(tmp_path: Path):
    a = arrays()
    hooks = ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    d = one(write_openmoss(tmp_path, a, hooks=hooks, norms=(7.0, 11.0), use_decoder_bias=False, act_fn="relu"))
    acts = np.maximum(2 / 7.0 * H @ a.W_enc.T + a.b_enc, 0)
    agree(d, acts, acts @ a.W_dec * 11.0 / 2)
    assert (str(d.site), d.tap) == ("3/mlp", Tap.MLP_IN)


@pytest.mark.parametrize(
    ("config", "x", "s"),
    [
        ({"norm_activation": "inference"}, H, 1.0),
        ({"norm_activation": "token-wise"}, 2 * H / np.linalg.norm(H, axis=1, keepdims=True), None),
    ],
)
def test_openmoss_with_its_norms_folded_in_or_of_each_token(
    tmp_path: Path, config: dict[str, Any], x: np.ndarray, s: float | None
):
    a = arrays()
    d = one(write_openmoss(tmp_path, a, norms=None, act_fn="relu", **config))
    acts = np.maximum(x @ a.W_enc.T + a.b_enc, 0)
    out = acts @ a.W_dec + a.b_dec
    agree(d, acts, out if s else out * np.linalg.norm(H, axis=1, keepdims=True) / 2)


@pytest.mark.parametrize(
    ("config", "norms", "message"),
    [
        ({"act_fn": "batchtopk"}, (7.0, 7.0), "act_fn is 'batchtopk'"),
        ({"use_glu_encoder": True}, (7.0, 7.0), "with use_glu_encoder"),
        (
            {"norm_activation": "batch-wise"},
            (7.0, 7.0),
            "norm_activation 'batch-wise' of blocks.7.hook_resid_post scales",
        ),
        ({}, None, r"lacks 'dataset_average_activation_norm\.blocks\.7\.hook_resid_post'"),
        ({}, (0.0, 0.0), r"is 0\.0, expected a positive number"),
    ],
)
def test_openmoss_whose_activations_are_not_known_has_directions(
    tmp_path: Path, config: dict[str, Any], norms: tuple[float, float] | None, message: str
):
    a = arrays()
    d = one(write_openmoss(tmp_path, a, norms=norms, **config))
    unit = a.W_dec / np.linalg.norm(a.W_dec, axis=1, keepdims=True)
    np.testing.assert_allclose(d.directions().numpy(), unit, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadFile, match=message):
        d.encode(torch.from_numpy(H))


@pytest.mark.parametrize("kind", ["clt", "crosscoder", "lorsa", "molt"])
def test_openmoss_dictionaries_with_several_decoders_are_refused(tmp_path: Path, kind: str):
    with pytest.raises(UnsupportedFormat, match=f"sae_type is '{kind}'.*llamascopium reads them"):
        load(write_openmoss(tmp_path, arrays(), sae_type=kind))


# .pt files that their names describe


def test_qwen_scope_keeps_as_many_features_as_its_repository_is_named_after(tmp_path: Path):
    layers = [arrays(0), arrays(1)]
    folder = write_qwen_scope(tmp_path, layers)
    for (site, d), a in zip(load_dictionaries(folder).items(), layers, strict=True):
        acts = topk(H @ a.W_enc.T + a.b_enc, 3)
        agree(d, acts, acts @ a.W_dec + a.b_dec)
        assert (site.part.value, d.tap) == ("res", Tap.RES)
    assert str(one(folder / "layer1.sae.pt").site) == "1/res"


def test_qwen_scope_under_another_name_has_directions_alone(tmp_path: Path):
    d = one(write_qwen_scope(tmp_path, [arrays()], repo="mine") / "layer0.sae.pt")
    assert d.directions().shape == (7, 4)
    with pytest.raises(UnsupportedFormat, match="how many features are kept"):
        d.encode(torch.from_numpy(H))


@pytest.mark.parametrize(
    ("name", "linear", "site"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", "_linear", "19/res"),
        ("Llama-3.3-70B-Instruct-SAE-l50.pt", "_linear", "50/res"),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "", "19/res"),
    ],
)
def test_goodfires_are_relu_and_sit_at_the_layer_of_their_name(tmp_path: Path, name: str, linear: str, site: str):
    a = arrays()
    ((place, d),) = load_dictionaries(write_goodfire(tmp_path, a, name=name, linear=linear)).items()
    acts = np.maximum(H @ a.W_enc.T + a.b_enc, 0)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert str(place) == site


# Files in parts


def split(file: Path) -> list[Path]:
    """The tensors of a file, one to a part."""
    named = load_file(file)
    parts = [file.with_stem(f"{file.stem}-{i + 1:05}-of-{len(named):05}") for i in range(len(named))]
    for part, (name, value) in zip(parts, named.items(), strict=True):
        save_file({name: value.clone()}, part)
    file.unlink()
    index = {"weight_map": {name: part.name for part, name in zip(parts, named, strict=True)}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    return parts


def test_a_file_in_parts_is_read_as_the_whole(tmp_path: Path):
    a = arrays()
    folder = write_sae_lens(tmp_path, a)
    split(folder / "sae_weights.safetensors")
    ((_, d),) = load_dictionaries(folder).items()
    acts = jump((H @ a.W_enc.T) + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)


def test_a_file_in_parts_of_which_one_is_missing_or_in_two_is_a_bad_file(tmp_path: Path):
    tensors = {"W_enc": arrays().W_enc.T, "W_dec": arrays().W_dec, "b_enc": arrays().b_enc, "b_dec": arrays().b_dec}
    folder = write_sae_lens_more(tmp_path, tensors, architecture="standard")
    parts = split(folder / "sae_weights.safetensors")
    whole = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(BadFile, match=r"is in 4 parts; 3 are here, sae_weights-00002-of-00004\.safetensors not"):
        load(folder)
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(BadFile, match=r"is in sae_weights-00001-of-00004\.safetensors and in sae_weights-00002"):
        load(folder)
    parts[1].write_bytes(whole)
    assert load(folder)
