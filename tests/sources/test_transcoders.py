"""Transcoders: what they read, what they write, and where their features are matched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import Arrays, arrays, write_llama_scope
from layouts_more import D_OUT, transcoder_arrays, write_gemma_2_transcoder, write_gemma_transcoder, write_sae_lens_more
from reading import H, agree, bfloat16, jump, one
from tiny_models import CONFIGS, D_MODEL, N_LAYERS, TEXTS, tiny_model

from saeflow.errors import BadFile, InvalidArgument, UnsupportedFormat, WidthMismatch
from saeflow.ids import FeatureId, Site
from saeflow.matching.direct import DirectMatches
from saeflow.sources.activations import JumpReLU, ReLU
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing
from saeflow.sources.formats import load, save_release
from saeflow.sources.modules import gain_of
from saeflow.sources.tokens import Tokens
from saeflow.sources.weights import TensorsInMemory

RMS = H / np.sqrt((H**2).mean(1, keepdims=True))


def in_memory(**kwargs: Any) -> Dictionary:
    a, skip = transcoder_arrays()
    t = torch.from_numpy
    return Dictionary(
        Site.parse("3/mlp"),
        tap=Tap.MLP_IN,
        W_enc=t(a.W_enc),
        b_enc=t(a.b_enc),
        W_dec=t(a.W_dec),
        b_dec=t(a.b_dec),
        W_skip=t(skip),
        activation=JumpReLU(t(a.threshold)),
        **kwargs,
    )


# files


def test_gemma_scope_transcoders_read_the_stream_divided_by_its_root_mean_square(tmp_path: Path):
    a = arrays()
    d = one(write_gemma_transcoder(tmp_path, a))
    acts = jump(RMS @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (str(d.site), d.tap, d.preprocessing.norm) == ("5/mlp", Tap.MID, Norm.RESCALE)
    with pytest.raises(UnsupportedFormat, match="a transcoder writes what an MLP writes, not 5/res"):
        load(write_gemma_transcoder(tmp_path / "b", a), Site.parse("5/res"))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("config", [False, True])
def test_gemma_scope_2_transcoders(tmp_path: Path, affine: bool, config: bool):
    a, skip = transcoder_arrays()
    d = one(write_gemma_2_transcoder(tmp_path, a, skip=skip if affine else None, config=config))
    acts = jump(H @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec + (H @ skip.T if affine else 0))
    assert (str(d.site), d.tap, d.d_in, d.d_out) == ("7/mlp", Tap.MLP_IN, 4, D_OUT)


@pytest.mark.parametrize("by_decoder_norm", [False, True])
def test_llama_scope_transcoders_have_a_scale_on_either_side(tmp_path: Path, by_decoder_norm: bool):
    """The release's own inference: b_enc / s_in, compare, W_dec * s_in / s_out, b_dec / s_out."""
    a, theta = bfloat16(arrays()), 0.4
    folder = write_llama_scope(
        tmp_path,
        a,
        hook="blocks.3.ln2.hook_normalized",
        hook_point_out="blocks.3.hook_mlp_out",
        threshold=theta,
        dataset_average_activation_norm={"in": 5.0, "out": 0.5},
        sparsity_include_decoder_norm=by_decoder_norm,
    )
    d = one(folder)
    s_in, s_out = np.sqrt(4) / 5.0, np.sqrt(4) / 0.5
    pre = RMS @ a.W_enc.T + a.b_enc / s_in
    compared = pre * np.linalg.norm(a.W_dec, axis=1) if by_decoder_norm else pre
    acts = np.where(compared > theta, pre, 0)
    agree(d, acts * s_in, acts @ (a.W_dec * s_in / s_out) + a.b_dec / s_out)
    assert (str(d.site), d.tap) == ("3/mlp", Tap.MID)


SAE_LENS = {
    "transcoder": (False, False),
    "skip_transcoder": (False, True),
    "jumprelu_transcoder": (True, False),
    "jumprelu_skip_transcoder": (True, True),
}


def sae_lens(tmp_path: Path, a: Arrays, skip: np.ndarray, architecture: str, **metadata: Any) -> Path:
    jumps, skips = SAE_LENS[architecture]
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    tensors |= {"threshold": a.threshold} if jumps else {}
    tensors |= {"W_skip": skip} if skips else {}
    hooks = {"hook_name": "blocks.5.mlp.hook_in", "hook_name_out": "blocks.5.hook_mlp_out"}
    told = {"model_name": "Qwen/Qwen3-4B", **hooks, **metadata}
    return write_sae_lens_more(tmp_path, tensors, architecture=architecture, metadata=told, d_out=D_OUT)


@pytest.mark.parametrize("architecture", SAE_LENS)
def test_sae_lens_transcoders(tmp_path: Path, architecture: str):
    a, skip = transcoder_arrays()
    jumps, skips = SAE_LENS[architecture]
    d = one(sae_lens(tmp_path, a, skip, architecture))
    pre = H @ a.W_enc.T + a.b_enc
    acts = jump(pre, a.threshold) if jumps else np.maximum(pre, 0)
    agree(d, acts, acts @ a.W_dec + a.b_dec + (H @ skip.T if skips else 0))
    assert (str(d.site), d.tap, d.is_transcoder) == ("5/mlp", Tap.MLP_IN, True)


@pytest.mark.parametrize(
    ("metadata", "tap", "norm"),
    [
        ({"hook_name": "blocks.5.ln2.hook_normalized"}, Tap.MID, Norm.RESCALE),
        ({"hook_name": "blocks.5.hook_resid_mid"}, Tap.MID, Norm.NONE),
        # what sae-lens writes for Gemma Scope 2: the modules say which side of the norm it is
        (
            {
                "model_name": "google/gemma-3-1b-pt",
                "hook_name": "blocks.5.hook_mlp_in",
                "hf_hook_name": "model.layers.5.pre_feedforward_layernorm.output",
                "hf_hook_name_out": "model.layers.5.post_feedforward_layernorm.output",
            },
            Tap.MLP_IN,
            Norm.NONE,
        ),
        (
            {
                "model_name": "meta-llama/Llama-3.2-1B",
                "hf_hook_name": "model.layers.5.mlp.input",
                "hf_hook_name_out": "model.layers.5.mlp.output",
            },
            Tap.MLP_IN,
            Norm.NONE,
        ),
    ],
)
def test_what_a_transcoder_reads_is_told_by_its_hooks(tmp_path: Path, metadata: dict[str, Any], tap: Tap, norm: Norm):
    a, skip = transcoder_arrays()
    d = one(sae_lens(tmp_path, a, skip, "transcoder", **metadata))
    assert (str(d.site), d.tap, d.preprocessing.norm) == ("5/mlp", tap, norm)


@pytest.mark.parametrize(
    "metadata",
    [
        {"hook_name_out": "blocks.6.hook_mlp_out"},  # another layer
        {"hook_name_out": "blocks.5.hook_resid_post"},  # not what the MLP writes
        {"hook_name": "blocks.5.hook_resid_pre"},
        {"hook_name": "blocks.5.ln1.hook_normalized"},
        # LayerNorm: without the gain it is not what RESCALE does
    ],
)
def test_transcoders_from_elsewhere_or_to_elsewhere_are_refused(tmp_path: Path, metadata: dict[str, Any]):
    a, skip = transcoder_arrays()
    with pytest.raises(UnsupportedFormat, match=r"cfg\.json: reads 'blocks\."):
        load(sae_lens(tmp_path, a, skip, "transcoder", **metadata))


def test_of_two_namings_that_are_refused_the_one_that_is_tried_first_is_told(tmp_path: Path):
    a, skip = transcoder_arrays()
    modules = {"hf_hook_name": "model.layers.5.mlp.act_fn", "hf_hook_name_out": "model.layers.5.mlp.output"}
    with pytest.raises(UnsupportedFormat, match=r"reads 'model\.layers\.5\.mlp\.act_fn'"):
        load(sae_lens(tmp_path, a, skip, "transcoder", hook_name="blocks.5.mlp.hook_post", **modules))


def test_a_transcoder_of_wrong_shapes_is_named(tmp_path: Path):
    a, skip = transcoder_arrays()
    with pytest.raises(BadFile, match=r"'W_skip' has shape \[4, 5\], expected \[5, 4\] beside W_dec"):
        load(sae_lens(tmp_path / "a", a, skip.T, "skip_transcoder"))
    a.W_enc = a.W_enc[:-1]
    with pytest.raises(BadFile, match=r"'W_enc' has shape \[4, 6\], expected \[4, 7\] beside W_dec"):
        load(sae_lens(tmp_path / "b", a, skip, "transcoder"))


def test_an_autoencoder_of_two_widths_is_refused(tmp_path: Path):
    a, _ = transcoder_arrays()
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    with pytest.raises(BadFile, match=r"'W_enc' has shape \[4, 7\], expected \[5, 7\] beside W_dec"):
        load(write_sae_lens_more(tmp_path, tensors, architecture="standard"))


# the Dictionary


def test_decoding_with_a_skip_asks_for_what_was_encoded():
    d = in_memory()
    with pytest.raises(InvalidArgument, match=r"3/mlp adds a linear skip.*decode\(acts, h\)"):
        d.decode(torch.zeros(2, 7))


def test_what_a_transcoder_writes_is_not_scaled_back():
    d, h = in_memory(preprocessing=Preprocessing(norm=Norm.RESCALE)), torch.from_numpy(H)
    a, skip = transcoder_arrays()
    acts = jump(RMS @ a.W_enc.T + a.b_enc, a.threshold)
    expected = acts @ a.W_dec + a.b_dec + RMS @ skip.T
    np.testing.assert_allclose(d.decode(d.encode(h), h).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert d.scale(h) == 1.0


def test_folding_and_moving_keep_a_transcoder():
    d, h = in_memory(), torch.from_numpy(H)
    for other in (d.fold(), d.to(dtype=torch.float64)):
        assert (other.d_in, other.d_out, other.is_transcoder) == (4, D_OUT, True)
        torch.testing.assert_close(
            other.decode(other.encode(h), h).float(), d.decode(d.encode(h), h), rtol=1e-4, atol=1e-4
        )


def test_a_transcoder_of_another_width_is_refused_with_both():
    with pytest.raises(WidthMismatch, match="reads mlp_in of width 4, and the hidden states are 5 wide"):
        in_memory().encode(torch.zeros(2, D_OUT))
    a, skip = transcoder_arrays()
    tensors = {name: torch.from_numpy(getattr(a, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    tensors["W_skip"] = torch.from_numpy(skip).T
    with pytest.raises(InvalidArgument, match=r"x: W_skip has shape \[4, 5\], expected \[5, 4\]"):
        TensorsInMemory(tensors, "x", transcoder=True)
    with pytest.raises(InvalidArgument, match=r"x: W_enc has shape \[7, 4\], expected \[7, 5\]"):
        TensorsInMemory(tensors, "x")


def test_a_saeflow_folder_keeps_a_transcoder(tmp_path: Path):
    d, h = in_memory(), torch.from_numpy(H)
    save_release(tmp_path, {d.site: d}, name="tiny", model="none/tiny", dtype=torch.float32)
    back = one(tmp_path, d.site)
    assert (back.tap, back.d_in, back.d_out) == (Tap.MLP_IN, 4, D_OUT)
    torch.testing.assert_close(back.decode(back.encode(h), h), d.decode(d.encode(h), h), rtol=0, atol=0)


def test_matching_compares_what_a_transcoder_writes():
    """A residual SAE one of whose rows is a transcoder's row of W_dec: found at cosine 1."""
    transcoder = in_memory()
    rows = torch.from_numpy(arrays(9, d_in=D_OUT).W_dec)
    rows[2] = -3 * transcoder.W_dec[5]
    rows[4] = 2 * transcoder.W_dec[5]
    site = Site.parse("3/res")
    residual = Dictionary(
        site, tap=Tap.RES, W_enc=rows, b_enc=torch.zeros(7), W_dec=rows, b_dec=torch.zeros(D_OUT), activation=ReLU()
    )
    matches = DirectMatches({site: residual, transcoder.site: transcoder})
    [best] = matches.best(FeatureId(site, 4), transcoder.site)
    assert (str(best.feature), round(best.score, 5)) == ("3/mlp/5", 1.0)


# the model


@pytest.mark.parametrize("model_type", CONFIGS)
@torch.no_grad()
def test_the_model_captures_what_its_mlp_is_called_with(model_type: str):
    model = tiny_model(model_type)
    tokens = model.tokenize(TEXTS)
    held = model.capture(tokens, [(layer, Tap.MLP_IN) for layer in range(N_LAYERS)])
    seen: list[torch.Tensor] = []
    handles = [
        model.block(layer)
        .get_submodule(model.architecture.mlp_module)
        .register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        for layer in range(N_LAYERS)
    ]
    model.capture(Tokens(tokens.input_ids, tokens.attention_mask), [Site.parse(f"{N_LAYERS - 1}/res")])
    for handle in handles:
        handle.remove()
    for layer in range(N_LAYERS):
        torch.testing.assert_close(held[layer, Tap.MLP_IN], seen[layer], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gemma3_text"])
@torch.no_grad()
def test_mid_rescaled_times_the_gain_is_what_the_mlp_is_called_with(model_type: str):
    """So a transcoder trained before the gain reads `MID` through Norm.RESCALE."""
    model = tiny_model(model_type)
    held = model.capture(model.tokenize(TEXTS[:1]), [(1, Tap.MID), (1, Tap.MLP_IN)])
    normed, _, _ = Preprocessing(norm=Norm.RESCALE).prepare(held[1, Tap.MID])
    norm = model.block(1).get_submodule(model.architecture.mlp_norm)
    expected = normed * gain_of(norm, D_MODEL, torch.float32, centred=False)
    torch.testing.assert_close(held[1, Tap.MLP_IN], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mid_lies_between_attention_and_the_mlp():
    model = tiny_model("gemma2")
    sites = [Site.parse(f"1/{part}") for part in ("att", "mlp", "res")]
    held = model.capture(model.tokenize(TEXTS), [*sites, (1, Tap.MID)], inputs=[1])
    att, mlp, res = (held[site] for site in sites)
    torch.testing.assert_close(held[1, Tap.MID], held.inputs[1] + att, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(held[1, Tap.MID] + mlp, res, rtol=1e-5, atol=1e-5)
