"""Each file format: the layout of the release is written, read back, and run against a formula in numpy."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import (
    Arrays,
    arrays,
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_sae_lens,
)
from safetensors.torch import load_file, save_file

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.activations import BatchTopK, JumpReLU, ReLU, TopK
from saeflow.sources.architectures import Tap
from saeflow.sources.dictionary import Dictionary, Norm, Preprocessing
from saeflow.sources.formats import discover, load, save_release
from saeflow.sources.formats.tensors import NpzFile, SafetensorsFile

H = (2 * np.random.default_rng(3).normal(size=(50, 4))).astype(np.float32)
WRITERS: list[Callable[..., Path]] = [
    write_gemma_scope,
    write_gemma_scope_2,
    write_llama_scope,
    write_sae_lens,
]


def one(path: Path, site: Site | None = None) -> Dictionary:
    found = load(path, site)
    assert isinstance(found, Dictionary)
    return found


def jump(pre: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    return np.where(pre > threshold, np.maximum(pre, 0), 0)


def agree(d: Dictionary, acts: np.ndarray, out: np.ndarray) -> None:
    h = torch.from_numpy(H)
    assert 0 < (acts > 0).mean() < 1, "the case must have features on and off"
    np.testing.assert_allclose(d.encode(h).numpy(), acts, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d.decode(d.encode(h), h).numpy(), out, rtol=1e-4, atol=1e-4)


def bfloat16(a: Arrays) -> Arrays:
    def rounded(array: np.ndarray) -> np.ndarray:
        return torch.from_numpy(array).bfloat16().float().numpy()

    return Arrays(*(rounded(getattr(a, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")))


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


def test_gemma_scope_transcoders_are_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match="transcoders have no site"):
        load(write_gemma_scope(tmp_path, arrays(), part="transcoders"))


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


def test_gemma_scope_2_transcoders_are_refused(tmp_path: Path):
    hook = "model.layers.7.post_feedforward_layernorm.output"
    with pytest.raises(UnsupportedFormat, match="transcoder is no dictionary of one site"):
        load(write_gemma_scope_2(tmp_path, arrays(), hf_hook_point_out=hook))


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


def test_llama_scope_transcoders_and_bad_numbers_are_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match=r"hyperparams\.json: reads .* writes"):
        load(write_llama_scope(tmp_path / "a", arrays(), hook_point_out="blocks.3.hook_mlp_out"))
    for number, (key, value) in enumerate([("jump_relu_threshold", None), ("d_model", 0), ("d_model", True)]):
        with pytest.raises(BadFile, match=rf"hyperparams\.json: {key} is {value}"):
            load(write_llama_scope(tmp_path / str(number), arrays(), **{key: value}))


# sae-lens


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


@pytest.mark.parametrize(
    ("told", "norm"), [("layer_norm", Norm.LAYER_NORM), ("constant_norm_rescale", Norm.RESCALE)]
)
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
        {"hook_name": "blocks.3.hook_resid_mid"},
        # on Gemma a norm stands between these modules and the stream
        {"hook_name": "model.layers.2.mlp", "model_name": "google/gemma-2-2b"},
        # on Llama this norm precedes the MLP
        {"hook_name": "model.layers.2.post_attention_layernorm", "model_name": "llama"},
    ],
)
def test_hooks_that_are_no_site_are_refused_by_name(tmp_path: Path, metadata: dict[str, Any]):
    with pytest.raises(UnsupportedFormat, match=rf"cfg\.json: hook '{metadata['hook_name']}' .* is no site"):
        load(write_sae_lens(tmp_path, arrays(), metadata=metadata))


def test_a_site_can_be_given_where_the_hook_is_odd(tmp_path: Path):
    folder = write_sae_lens(tmp_path, arrays(), metadata={"hook_name": "odd"})
    assert str(one(folder, Site(1, Part.MLP)).site) == "1/mlp"


@pytest.mark.parametrize(
    ("metadata", "config", "message"),
    [
        (
            {},
            {"architecture": "gated"},
            "architecture 'gated' is not supported. Supported: standard, jumprelu",
        ),
        ({}, {"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({"hook_head_index": 3}, {}, "hook_head_index is 3"),
        ({"hook_name_out": "blocks.5.hook_mlp_out"}, {}, "transcoder is no dictionary"),
    ],
)
def test_what_a_dictionary_cannot_do_is_refused(
    tmp_path: Path, metadata: dict[str, Any], config: dict[str, Any], message: str
):
    with pytest.raises(UnsupportedFormat, match=rf"cfg\.json: .*{message}"):
        load(write_sae_lens(tmp_path, arrays(), metadata=metadata, **config))


# saeflow's own folder


def release(dtype: torch.dtype, folder: Path) -> dict[Site, Dictionary]:
    t = torch.from_numpy
    made: dict[Site, Dictionary] = {}
    activations = {
        "0/res": JumpReLU(t(arrays(0).threshold)),
        "0/att": TopK(2),
        "1/mlp": BatchTopK(torch.tensor(0.3)),
        "1/res": ReLU(),
    }
    for seed, (text, activation) in enumerate(activations.items()):
        a, site = arrays(seed), Site.parse(text)
        made[site] = Dictionary(
            site,
            tap=Tap.Z if site.part is Part.ATT else Tap.of(site.part),
            W_enc=t(a.W_enc),
            b_enc=t(a.b_enc),
            W_dec=t(a.W_dec),
            b_dec=t(a.b_dec),
            activation=activation,
            preprocessing=Preprocessing(subtract_b_dec=text == "1/res"),
        )
    save_release(folder, made, name="tiny", model="none/tiny", dtype=dtype)
    return made


def test_a_saved_release_in_float32_is_read_back_exactly(tmp_path: Path):
    made, h = release(torch.float32, tmp_path), torch.from_numpy(H)
    back = load(tmp_path)
    assert isinstance(back, dict)
    assert list(back) == sorted(made)
    for site, d in made.items():
        assert (back[site].tap, back[site].preprocessing) == (d.tap, d.preprocessing)
        torch.testing.assert_close(back[site].encode(h), d.encode(h), rtol=0, atol=0)
        assert back[site].activation.kind is d.activation.kind
    assert one(tmp_path, Site.parse("0/att")).activation == TopK(2)


def test_a_saved_release_in_float16_is_read_as_float32_and_thresholds_are_kept(tmp_path: Path):
    made = release(torch.float16, tmp_path)
    site = Site.parse("0/res")
    stored = load_file(tmp_path / "0.res.safetensors")
    assert {name: x.dtype for name, x in stored.items() if name.startswith("W")} == dict.fromkeys(
        ("W_enc", "W_dec"), torch.float16
    )
    back = one(tmp_path, site)
    assert back.W_dec.dtype is back.b_enc.dtype is torch.float32
    torch.testing.assert_close(back.W_dec, made[site].W_dec.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(back.activation.threshold, made[site].activation.threshold, rtol=0, atol=0)


def test_release_json_says_what_the_format_says(tmp_path: Path):
    release(torch.float16, tmp_path)
    told = json.loads((tmp_path / "release.json").read_text())
    assert (told["format"], told["version"], told["name"], told["model"]) == (
        "saeflow-dictionaries",
        1,
        "tiny",
        "none/tiny",
    )
    entry = {"file": "0.res.safetensors", "tap": "res", "activation": {"kind": "jumprelu"}}
    assert told["sites"]["0/res"] == entry
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["release.json", *(entry["file"] for entry in told["sites"].values())]
    )


def test_a_write_that_fails_leaves_no_release_json_and_no_part_file(tmp_path: Path):
    made = release(torch.float16, tmp_path)
    bad = made[Site.parse("1/res")]
    bad.W_dec[0] *= 1e-12
    with pytest.raises(InvalidArgument, match=r"W_dec of the dictionary at 1/res .*float32"):
        save_release(tmp_path, made, name="tiny", model="none/tiny")
    assert not (tmp_path / "release.json").exists()
    assert not list(tmp_path.glob("*.part"))


def test_an_empty_release_is_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="no dictionary to write"):
        save_release(tmp_path, {}, name="x", model="y")


def _edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    release(torch.float16, folder)
    told = json.loads((folder / "release.json").read_text())
    edit(told)
    (folder / "release.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda r: r.update(version=2), UnsupportedFormat, r"release\.json: format and version"),
        (lambda r: r.pop("model"), BadFile, r"release\.json: entry 'model' is None"),
        (lambda r: r["sites"].update({"0/foo": {}}), BadFile, r"release\.json: '0/foo' is no site"),
        (
            lambda r: r["sites"]["0/res"].update(file="../x"),
            BadFile,
            r"site 0/res: file '\.\./x' is no plain",
        ),
        (lambda r: r["sites"]["0/res"].update(tap="q"), UnsupportedFormat, r"site 0/res: Tap 'q'"),
        (lambda r: r["sites"]["0/res"]["activation"].clear(), BadFile, r"site 0/res: entry 'kind'"),
        (lambda r: r["sites"]["0/att"]["activation"].pop("k"), BadFile, r"site 0/att: entry 'k'"),
        (lambda r: r["sites"]["0/res"].update(preprocessing={"x": 1}), UnsupportedFormat, r"\['x'\]"),
        (
            lambda r: r["sites"]["0/res"].update(file="gone.safetensors"),
            BadFile,
            r"gone\.safetensors: cannot",
        ),
    ],
)
def test_a_release_json_that_is_wrong_is_refused_by_entry(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        load(_edited(tmp_path, edit))


# what every reader shares


@pytest.mark.parametrize("write", WRITERS)
def test_opening_reads_no_tensor_and_directions_read_the_decoder_alone(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    reads: list[str] = []
    for file in (NpzFile, SafetensorsFile):
        monkeypatch.setattr(
            file, "read", lambda self, name, old=file.read: (reads.append(name), old(self, name))[1]
        )
    d = one(write(tmp_path, arrays()))
    assert (d.n_features, d.d_in, reads) == (7, 4, [])
    d.directions()
    assert len(reads) == 1
    assert reads[0].lower() in ("w_dec", "decoder.weight")
    d.encode(torch.from_numpy(H))
    assert len({name.lower() for name in reads}) == len(reads)


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_tensor_is_named_with_its_file(tmp_path: Path, write: Callable[..., Path]):
    path = _tensor_file(write(tmp_path, arrays()))
    named = _read(path)
    for name in sorted(named):
        _write(path, {key: value for key, value in named.items() if key != name})
        with pytest.raises(BadFile, match=rf"{path.name}: tensor '(?i:{name})' is missing"):
            load(path if path.suffix == ".npz" else _folder(path))


@pytest.mark.parametrize("write", WRITERS)
def test_a_wrong_shape_is_named_with_expected_and_got(tmp_path: Path, write: Callable[..., Path]):
    path = _tensor_file(write(tmp_path, arrays()))
    named = _read(path)
    for name, value in named.items():
        if name.lower() in ("w_dec", "decoder.weight"):
            continue
        _write(path, {**named, name: value[:-1]})
        got, want = list(value[:-1].shape), list(value.shape)
        with pytest.raises(BadFile) as caught:
            load(path if path.suffix == ".npz" else _folder(path))
        for part in (path.name, f"tensor {name!r} has shape {got}", f"expected {want}"):
            assert part in str(caught.value)


@pytest.mark.parametrize("write", WRITERS)
def test_a_truncated_file_is_named(tmp_path: Path, write: Callable[..., Path]):
    path = _tensor_file(write(tmp_path, arrays()))
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(BadFile, match=rf"{path.name}: cannot be opened as .*fetch it again"):
            load(path if path.suffix == ".npz" else _folder(path))


@pytest.mark.parametrize("write", WRITERS)
def test_zero_decoder_rows_and_nan_name_file_tensor_and_rows(tmp_path: Path, write: Callable[..., Path]):
    a = arrays()
    a.W_dec[[2, 6]] = 0
    d = one(write(tmp_path / "zero", a))
    with pytest.raises(BadFile, match=r"(npz|safetensors): tensor 'W_dec' has 2 of 7 rows .*\[2, 6\]"):
        d.directions()
    a = arrays()
    a.W_dec[3, 1] = np.nan
    with pytest.raises(BadFile, match=r"tensor 'W_dec' has NaN or infinite values in 1 of 7 rows .*\[3\]"):
        one(write(tmp_path / "nan", a)).directions()


def test_thresholds_that_are_not_finite_are_refused_at_encoding_only(tmp_path: Path):
    a = arrays()
    a.threshold[4] = np.nan
    d = one(write_gemma_scope(tmp_path, a))
    d.directions()
    with pytest.raises(BadFile, match=r"params\.npz: tensor 'threshold' .*\[4\]"):
        d.encode(torch.from_numpy(H))


def test_a_config_that_is_no_json_object_is_named(tmp_path: Path):
    folder = write_sae_lens(tmp_path, arrays())
    (folder / "cfg.json").write_text("{")
    with pytest.raises(BadFile, match=r"cfg\.json: cannot be read as JSON"):
        load(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(BadFile, match=r"cfg\.json: holds list"):
        load(folder)


def test_an_unknown_folder_lists_what_is_supported(tmp_path: Path):
    (tmp_path / "ae.pt").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "ae.pt"):
        with pytest.raises(
            UnsupportedFormat, match=r"sae-lens v6 .*Gemma Scope .*Llama Scope|saeflow folder .*Llama Scope"
        ):
            load(path)
    with pytest.raises(InvalidArgument, match="gone does not exist"):
        load(tmp_path / "gone")


def test_a_tree_of_several_formats_is_searched(tmp_path: Path):
    write_gemma_scope(tmp_path / "a", arrays(), part="mlp", layer=2)
    write_llama_scope(tmp_path / "b", arrays())
    write_sae_lens(tmp_path / "c" / "d", arrays())
    assert [str(site) for site in discover(tmp_path)] == ["2/mlp", "3/res", "5/res"]
    assert one(tmp_path, Site(3, Part.RES)).n_features == 7
    with pytest.raises(UnknownSite, match=r"no dictionary at 9/res. It has 2/mlp, 3/res, 5/res"):
        load(tmp_path, Site(9, Part.RES))


def test_two_files_for_one_site_are_refused_naming_both(tmp_path: Path):
    write_gemma_scope(tmp_path, arrays(), l0=73)
    write_gemma_scope(tmp_path, arrays(), l0=158)
    with pytest.raises(BadFile, match=r"average_l0_158.* and .*average_l0_73.* at 24/res"):
        load(tmp_path)


# .npz members


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pad", range(5))
def test_npz_members_are_read_whatever_their_type_order_and_alignment(
    tmp_path: Path, dtype: str, order: Any, pad: int
):
    wanted = np.array(np.random.default_rng(0).normal(size=(3, 5)), dtype=dtype, order=order)
    path = tmp_path / "x.npz"
    np.savez(path, **{"a" * (pad + 1): np.zeros(3, np.float32), "W": wanted})
    got = NpzFile(path).read("W")
    assert got.dtype is torch.float32
    np.testing.assert_array_equal(got.numpy(), wanted.astype(np.float32))


def test_an_npz_with_objects_is_never_unpickled(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, W=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadFile, match=r"x\.npz"):
        NpzFile(path).read("W")


def test_integers_are_refused(tmp_path: Path):
    np.savez(tmp_path / "x.npz", W=np.arange(3))
    with pytest.raises(BadFile, match=r"x\.npz: tensor 'W' is int64"):
        NpzFile(tmp_path / "x.npz").read("W")
    save_file({"W": torch.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(BadFile, match=r"x\.safetensors: tensor 'W' is torch.int64"):
        SafetensorsFile(tmp_path / "x.safetensors").read("W")


def test_a_member_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path: Path):
    np.save(tmp_path / "W.npy", np.zeros((4, 4), np.float32))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("W.npy", (tmp_path / "W.npy").read_bytes()[:-8])
    with pytest.raises(BadFile, match=r"x\.npz: .*W\.npy holds"):
        NpzFile(tmp_path / "x.npz")


def _tensor_file(path: Path) -> Path:
    found = [path] if path.suffix == ".npz" else list(path.rglob("*.safetensors"))
    assert len(found) == 1
    return found[0]


def _folder(file: Path) -> Path:
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".npz":
        with np.load(path) as data:
            return {name: torch.from_numpy(data[name]) for name in data}
    return load_file(path)


def _write(path: Path, named: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in named.items()})
    else:
        save_file({name: value.contiguous() for name, value in named.items()}, path)
