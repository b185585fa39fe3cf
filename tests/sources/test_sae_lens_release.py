"""`sae-lens:RELEASE`: sites from names, choice by pattern, and a package that is missing or does not load it."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays
from reading import H, agree, jump
from torch import Tensor

from saeflow.errors import BadFile, InvalidArgument, MissingExtra, UnknownRelease, Unreachable, UnsupportedFormat
from saeflow.ids import Site
from saeflow.sources.architectures import Tap
from saeflow.sources.library import load_dictionaries

# Names as pretrained_saes.yaml has them.
NAMES = {
    "gpt2-small-mlp-out-v5-32k": ["blocks.0.hook_mlp_out", "blocks.11.hook_mlp_out"],
    "gpt2-small-res-jb": ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre", "blocks.11.hook_resid_post"],
    "gemma-scope-2b-pt-att": ["layer_3/width_16k/average_l0_50", "layer_3/width_16k/average_l0_117"],
    "llama_scope_lxm_8x": ["l0m_8x", "l31m_8x"],
    "gemma-scope-2-1b-pt-res-all": ["layer_0_width_16k_l0_big", "layer_0_width_262k_l0_big"],
    "sae_bench_pythia70m_sweep_topk_ctx128_0730": ["blocks.3.hook_resid_post__trainer_0"],
    "pythia-70m-deduped-res-sm": ["e-res-sm", "0-res-sm"],
    "qwen-scope-3-8b-base-w64k-l50": ["layer0", "layer35"],
    "gpt2-small-hook-z-kk": ["blocks.7.hook_z"],
    "gpt2-small-resid-mid-v5-32k": ["blocks.0.hook_resid_mid"],
}


@dataclass
class Listed:
    saes_map: dict[str, str]
    model: str = "some-model"
    conversion_func: str | None = None


class Config:
    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def to_dict(self) -> dict[str, Any]:
        return self.told


class Loaded:
    """What `SAE.from_pretrained` returns: a configuration and a state dict."""

    def __init__(self, tensors: dict[str, np.ndarray], **told: Any) -> None:
        metadata = {"hook_name": told.pop("hook", "odd"), **told.pop("metadata", {})}
        told = {"architecture": "jumprelu", "apply_b_dec_to_input": False, "metadata": metadata, **told}
        self.cfg = Config(told)
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in self.tensors.items()}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch):
    """A stand-in of sae-lens: its list of releases, and a loader that answers with `answer`."""
    asked: list[tuple[str, str]] = []
    made = types.SimpleNamespace(asked=asked, answer=None)

    def from_pretrained(release: str, sae_id: str, *, device: str, dtype: str) -> Any:
        asked.append((release, sae_id))
        if isinstance(made.answer, Exception):
            raise made.answer
        return made.answer

    directory = types.ModuleType("sae_lens.loading.pretrained_saes_directory")
    listed = {name: Listed(dict.fromkeys(saes, "")) for name, saes in NAMES.items()}
    directory.get_pretrained_saes_directory = lambda: listed
    layers = {f"layer_{layer}": str(layer) for layer in range(2)}
    listed["mntss-gemma-2-2b-2.5m-clt-as-per-layer"] = Listed(layers, conversion_func="mntss_clt_layer_transcoder")
    listed["gemma-scope-2-1b-pt-mixed"] = Listed(
        {"layer_3_res": "resid_post/layer_3", "layer_3_transcoder": "clt/width_262k/params_layer_3"}
    )
    top = types.ModuleType("sae_lens")
    top.SAE = types.SimpleNamespace(from_pretrained=from_pretrained)
    for name, module in {
        "sae_lens": top,
        "sae_lens.loading": types.ModuleType("sae_lens.loading"),
        "sae_lens.loading.pretrained_saes_directory": directory,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("gpt2-small-mlp-out-v5-32k", ["0/mlp", "11/mlp"]),
        ("gpt2-small-res-jb", ["0/res", "11/res"]),
        ("gemma-scope-2b-pt-att@*l0_117", ["3/att"]),
        ("llama_scope_lxm_8x", ["0/mlp", "31/mlp"]),
        ("gemma-scope-2-1b-pt-res-all@*16k*", ["0/res"]),
        ("sae_bench_pythia70m_sweep_topk_ctx128_0730", ["3/res"]),
        ("pythia-70m-deduped-res-sm", ["0/res"]),
        ("qwen-scope-3-8b-base-w64k-l50", ["0/res", "35/res"]),
        ("gpt2-small-hook-z-kk", ["7/att"]),
    ],
)
def test_sites_are_told_from_names_and_nothing_is_fetched(package: Any, name: str, sites: list[str]):
    found = load_dictionaries(f"sae-lens:{name}")
    assert ([str(site) for site in found.sites], found.model) == (sites, "some-model")
    assert package.asked == []


def test_what_the_loader_returns_is_read_as_a_folder_of_sae_lens_is(package: Any):
    a = arrays()
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec, "threshold": a.threshold}
    package.answer = Loaded(tensors, hook="blocks.3.attn.hook_z")
    d = load_dictionaries("sae-lens:gemma-scope-2b-pt-att@*l0_50")[Site.parse("3/att")]
    acts = jump(H @ a.W_enc.T + a.b_enc, a.threshold)
    agree(d, acts, acts @ a.W_dec + a.b_dec)
    assert (d.tap, package.asked) == (Tap.Z, [("gemma-scope-2b-pt-att", "layer_3/width_16k/average_l0_50")])


def test_several_saes_at_one_site_need_a_pattern_and_are_listed(package: Any):
    found = load_dictionaries("sae-lens:gemma-scope-2b-pt-att")
    with pytest.raises(InvalidArgument, match=r"2 SAEs at 3/att: .*l0_50, .*l0_117\. Choose with a pattern"):
        found[Site.parse("3/att")]
    assert load_dictionaries("sae-lens:pythia-70m-deduped-res-sm").left_out.keys() == {"e-res-sm"}
    with pytest.raises(InvalidArgument, match=r"'x\*' fits none of the SAEs of gemma-scope-2b-pt-att: layer_3"):
        load_dictionaries("sae-lens:gemma-scope-2b-pt-att@x*")


def test_releases_without_sites_and_unknown_ones_are_refused(package: Any):
    with pytest.raises(UnsupportedFormat, match="no SAE of gpt2-small-resid-mid-v5-32k says its site"):
        load_dictionaries("sae-lens:gpt2-small-resid-mid-v5-32k")
    with pytest.raises(UnknownRelease, match="no release 'gpt2-x' among its 12: gpt2-small-mlp"):
        load_dictionaries("sae-lens:gpt2-x")


@pytest.mark.parametrize(
    ("error", "expected"), [(ConnectionError("no route"), Unreachable), (ValueError("odd"), BadFile)]
)
def test_a_loader_that_fails_is_reported_with_release_and_sae(
    package: Any, error: Exception, expected: type[Exception]
):
    package.answer = error
    found = load_dictionaries("sae-lens:llama_scope_lxm_8x")
    with pytest.raises(expected, match=rf"sae-lens:llama_scope_lxm_8x, l31m_8x: .*{error}"):
        found[Site.parse("31/mlp")]


def test_a_transcoder_that_is_elsewhere_than_its_name_says_is_refused(package: Any):
    a = arrays()
    tensors = {"W_enc": a.W_enc.T, "W_dec": a.W_dec, "b_enc": a.b_enc, "b_dec": a.b_dec}
    hooks = {"hook_name_out": "blocks.4.hook_mlp_out", "model_name": "llama"}
    package.answer = Loaded(tensors, architecture="transcoder", hook="blocks.4.mlp.hook_in", metadata=hooks)
    found = load_dictionaries("sae-lens:llama_scope_lxm_8x")
    with pytest.raises(UnsupportedFormat, match="is at 4/mlp, and its name says 0/mlp"):
        found[Site.parse("0/mlp")]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sae_lens.loading.pretrained_saes_directory", None)
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[sae-lens\]'"):
        load_dictionaries("sae-lens:gpt2-small-res-jb")


def test_cross_layer_transcoders_whose_decoders_the_loader_sums_are_refused_before_anything_is_fetched(package: Any):
    with pytest.raises(UnsupportedFormat, match=r"2\.5m-clt-as-per-layer: a cross-layer .* sae-lens sums them"):
        load_dictionaries("sae-lens:mntss-gemma-2-2b-2.5m-clt-as-per-layer")
    found = load_dictionaries("sae-lens:gemma-scope-2-1b-pt-mixed")
    assert [str(site) for site in found.sites] == ["3/res"]
    assert "sums them" in found.left_out["layer_3_transcoder"]
    assert package.asked == []
