"""The original libraries as oracles: they write or read the file, encode and decode, and saeflow must agree.

Run where sae-lens (6.x) or eai-sparsify is installed beside saeflow; skipped elsewhere, each with its reason. The
largest difference of each comparison is printed with `-s`.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope
from layouts_more import (
    CLASSES,
    transcoder_arrays,
    write_dictionary_learning,
    write_gemma_2_transcoder,
    write_gemma_transcoder,
    write_goodfire,
    write_old_sae_lens,
    write_openmoss,
    write_qwen_scope,
)
from reading import H, one
from safetensors import safe_open
from torch import Tensor

from saeflow.ids import Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import load_dictionaries

needs_sae_lens = pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed: pip install sae-lens"
)
needs_sparsify = pytest.mark.skipif(
    importlib.util.find_spec("sparsify") is None, reason="eai-sparsify is not installed: pip install eai-sparsify"
)
needs_llamascopium = pytest.mark.skipif(
    importlib.util.find_spec("llamascopium") is None, reason="llamascopium is not installed: pip install llamascopium"
)
# what the other libraries warn of is theirs
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.from_numpy(H)


def differ(d: Dictionary, acts: Tensor, out: Tensor, h: Tensor = X) -> None:
    """Compare with what a library computed, and say by how much they differ."""
    mine = d.encode(h)
    theirs = acts.detach()
    assert 0 < float((theirs > 0).float().mean()) < 1, "the case must have features on and off"
    far = (float((mine - theirs).abs().max()), float((d.decode(mine, h) - out.detach()).abs().max()))
    print(f"\n{d.site} {d.tap}: activations differ by {far[0]:.1e}, outputs by {far[1]:.1e}")  # noqa: T201
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d.decode(mine, h), out.detach(), rtol=1e-4, atol=1e-4)


def fill(sae: Any, seed: int = 0) -> None:
    """Random values in every parameter, thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()


# sae-lens writes, saeflow reads

ARCHITECTURES = {
    "standard": "StandardSAE",
    "gated": "GatedSAE",
    "jumprelu": "JumpReLUSAE",
    "topk": "TopKSAE",
    "transcoder": "Transcoder",
    "skip_transcoder": "SkipTranscoder",
    "jumprelu_transcoder": "JumpReLUTranscoder",
    "jumprelu_skip_transcoder": "JumpReLUSkipTranscoder",
}


def made_by_sae_lens(architecture: str, **told: Any) -> Any:
    from sae_lens import saes
    from sae_lens.saes.sae import SAEMetadata

    name = ARCHITECTURES[architecture]
    transcoder = "transcoder" in architecture
    told = {"d_in": 4, "d_sae": 7, "device": "cpu", "dtype": "float32", **told}
    told |= {"k": 3} if architecture == "topk" else {}
    told |= {"d_out": 5, "apply_b_dec_to_input": False} if transcoder else {}
    config = getattr(saes, f"{name}Config")(**told)
    config.metadata = SAEMetadata(
        model_name="Qwen/Qwen3-4B",
        hook_name="blocks.5.mlp.hook_in" if transcoder else "blocks.5.hook_resid_post",
        **({"hook_name_out": "blocks.5.hook_mlp_out"} if transcoder else {}),
    )
    sae = getattr(saes, name)(config)
    fill(sae)
    return sae


@needs_sae_lens
@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        (architecture, told)
        for architecture in ARCHITECTURES
        for told in ({}, {"apply_b_dec_to_input": False}, {"normalize_activations": "layer_norm"})
        if not told or "transcoder" not in architecture  # sae-lens has no such transcoder
    ],
)
def test_what_sae_lens_saves_encodes_and_decodes_as_there(tmp_path: Path, architecture: str, told: dict[str, Any]):
    sae = made_by_sae_lens(architecture, **told)
    sae.save_model(tmp_path)
    differ(one(tmp_path), sae.encode(X), sae(X))


@needs_sae_lens
@pytest.mark.parametrize("rescale", [False, True])
def test_topk_rescaled_by_decoder_norms_as_there(tmp_path: Path, rescale: bool):
    sae = made_by_sae_lens("topk", rescale_acts_by_decoder_norm=rescale)
    sae.save_model(tmp_path)
    differ(one(tmp_path), sae.encode(X).to_dense(), sae(X))


@needs_sae_lens
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", ["Standard", "JumpReLU", "Gated", "TopK", "BatchTopK"])
def test_a_checkpoint_with_its_factor_is_what_folding_the_factor_gives(tmp_path: Path, kind: str, rescale: bool):
    from sae_lens import SAE, saes
    from sae_lens.training.activation_scaler import ActivationScaler

    told: dict[str, Any] = {"d_in": 4, "d_sae": 7, "normalize_activations": "expected_average_only_in"}
    if "TopK" in kind:
        told |= {"k": 3, "rescale_acts_by_decoder_norm": rescale}
    trained = getattr(saes, f"{kind}TrainingSAE")(getattr(saes, f"{kind}TrainingSAEConfig")(**told))
    fill(trained)
    if kind == "BatchTopK":
        trained.topk_threshold = torch.tensor(0.4, dtype=torch.double)
    trained.save_model(tmp_path / "checkpoint")
    ActivationScaler(scaling_factor=0.37).save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
    trained.fold_activation_norm_scaling_factor(0.37)
    trained.save_inference_model(tmp_path / "folded")
    sae = SAE.load_from_disk(tmp_path / "folded")
    with torch.no_grad():
        differ(one(tmp_path / "checkpoint", Site.parse("1/res")), sae.encode(X), sae(X))


@needs_sae_lens
@pytest.mark.parametrize("matryoshka", [False, True])
def test_a_batchtopk_that_was_trained_there_and_saved_for_inference(tmp_path: Path, matryoshka: bool):
    from sae_lens import SAE, saes

    told: dict[str, Any] = {"d_in": 4, "d_sae": 7, "k": 3, "device": "cpu", "dtype": "float32"}
    name = "BatchTopKTrainingSAE"
    if matryoshka:
        name, told = "MatryoshkaBatchTopKTrainingSAE", {**told, "matryoshka_widths": [3, 7]}
    trained = getattr(saes, name)(getattr(saes, f"{name}Config")(**told))
    fill(trained)
    trained.topk_threshold = torch.tensor(0.4, dtype=torch.double)
    trained.save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    d = one(tmp_path, Site.parse("1/res"))
    differ(d, sae.encode(X), sae(X))


@needs_sae_lens
def test_an_older_configuration_is_read_as_sae_lens_reads_it(tmp_path: Path):
    from sae_lens import SAE

    folder = write_old_sae_lens(tmp_path, arrays())
    sae = SAE.load_from_disk(folder)
    differ(one(folder), sae.encode(X), sae(X))


@needs_sae_lens
def test_a_release_opens_through_the_loader_of_the_package(monkeypatch: pytest.MonkeyPatch):
    """Its list of releases is the real one; what the loader would download is made here."""
    from sae_lens import SAE

    sae = made_by_sae_lens("jumprelu")
    monkeypatch.setattr(SAE, "from_pretrained", lambda *_, **__: sae)
    found = load_dictionaries("sae-lens:gpt2-small-resid-post-v5-32k")
    assert (len(found), found.model) == (12, "gpt2-small")
    differ(found[Site.parse("5/res")], sae.encode(X), sae(X))


# the release's layout, sae-lens's own converter


def converted(
    monkeypatch: pytest.MonkeyPatch, loader: str, repo: str, folder: str, root: Path, norm: float | None = None
) -> Any:
    """The SAE that a converter of sae-lens makes of files under `root`, in place of the hub."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
        path = root / subfolder / filename
        if not path.is_file():
            raise loaders.EntryNotFoundError(str(path))
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(root / filename, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    config, state, _ = getattr(loaders, loader)(
        repo_id=repo, folder_name=folder, device="cpu", force_download=False, cfg_overrides={"dtype": "float32"}
    )
    config = loaders.handle_config_defaulting({**config, "d_in": state["W_enc"].shape[0], "d_sae": 7})
    if "d_out" in config:
        config["d_out"] = state["W_dec"].shape[1]
    sae_config = SAE.get_sae_config_class_for_architecture(config["architecture"]).from_dict(config)
    sae = SAE.get_sae_class_for_architecture(config["architecture"])(sae_config)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if norm is not None:
        sae.fold_activation_norm_scaling_factor(norm)
    return sae


@needs_sae_lens
@pytest.mark.parametrize("part", ["res", "mlp", "att"])
def test_gemma_scope_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    path = write_gemma_scope(tmp_path, arrays(), part=part)
    root = tmp_path / f"gemma-scope-2b-pt-{part}"
    folder = "layer_24/width_16k/average_l0_73"
    sae = converted(monkeypatch, "gemma_2_sae_huggingface_loader", f"google/{root.name}", folder, root)
    sae.turn_off_forward_pass_hook_z_reshaping()
    differ(one(path), sae.encode(X), sae(X))


@needs_sae_lens
def test_gemma_scope_transcoders_as_sae_lens_converts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_gemma_transcoder(tmp_path, arrays())
    root = tmp_path / "gemma-scope-2b-pt-transcoders"
    folder = "layer_5/width_16k/average_l0_49"
    sae = converted(monkeypatch, "gemma_2_transcoder_huggingface_loader", f"google/{root.name}", folder, root)
    normed = X / X.pow(2).mean(-1, keepdim=True).sqrt()  # what ln2.hook_normalized holds
    differ(one(path), sae.encode(normed), sae(normed))


@needs_sae_lens
@pytest.mark.parametrize("kind", ["resid_post", "transcoder", "transcoder affine"])
def test_gemma_scope_2_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    a, skip = transcoder_arrays()
    if kind == "resid_post":
        path = write_gemma_scope_2(tmp_path, arrays())
    else:
        path = write_gemma_2_transcoder(tmp_path, a, skip=skip if "affine" in kind else None)
    folder = str(path.relative_to(tmp_path))
    repo = "google/gemma-scope-2-1b-pt"
    sae = converted(monkeypatch, "gemma_3_sae_huggingface_loader", repo, folder, tmp_path)
    differ(one(path), sae.encode(X), sae(X))


@needs_sae_lens
def test_llama_scope_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_llama_scope(tmp_path, arrays(), norm=5.0)
    s = float(np.sqrt(4) / 5.0)
    repo = "fnlp/Llama3_1-8B-Base-LXR-8x"
    sae = converted(monkeypatch, "llama_scope_sae_huggingface_loader", repo, path.name, tmp_path, norm=s)
    differ(one(path), sae.encode(X), sae(X))


@needs_sae_lens
@pytest.mark.parametrize("dict_class", [name for name in CLASSES if name != "AutoEncoderNew"])
def test_dictionary_learning_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dict_class: str):
    """sae-lens does not convert AutoEncoderNew, whose decoder.bias it does not look for."""
    path = write_dictionary_learning(tmp_path, arrays(), dict_class=dict_class)
    config = (path / "config.json").read_text().replace('"layer"', '"k": 3, "layer"')
    (path / "config.json").write_text(config)
    loader = "dictionary_learning_sae_huggingface_loader_1"
    sae = converted(monkeypatch, loader, "canrager/lm_sae", path.name, tmp_path)
    differ(one(path), sae.encode(X), sae(X))


@needs_sae_lens
@pytest.mark.parametrize("name", ["Llama-3.1-8B-Instruct-SAE-l19.pth", "Llama-3.3-70B-Instruct-SAE-l50.pt"])
def test_goodfires_as_sae_lens_converts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    path = write_goodfire(tmp_path, arrays(), name=name)
    repo = f"Goodfire/{path.name}"
    sae = converted(monkeypatch, "get_goodfire_huggingface_loader", repo, name, path)
    differ(one(path / name), sae.encode(X), sae(X))


@needs_sae_lens
def test_qwen_scope_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_qwen_scope(tmp_path, [arrays()])
    loader = "qwen_scope_sae_huggingface_loader"
    sae = converted(monkeypatch, loader, f"Qwen/{path.name}", "layer0.sae.pt", path)
    differ(one(path / "layer0.sae.pt"), sae.encode(X), sae(X))


@needs_sae_lens
def test_llama_scope_r1_distill_as_sae_lens_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    a = arrays()
    a.W_dec /= np.linalg.norm(a.W_dec, axis=1, keepdims=True)  # which sae-lens takes for granted
    path = write_openmoss(tmp_path, a, former=True, norms=(5.0, 5.0))
    loader = "llama_scope_r1_distill_sae_huggingface_loader"
    sae = converted(monkeypatch, loader, "fnlp/Llama-Scope-R1-Distill", path.name, tmp_path)
    s = 2 / 5.0
    differ(one(path), sae.encode(s * X), sae(s * X) / s)


# Llamascopium writes, saeflow reads


@needs_llamascopium
@pytest.mark.parametrize("by_norm", [False, True])
@pytest.mark.parametrize("function", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize(
    "hooks",
    [("blocks.7.hook_resid_post", "blocks.7.hook_resid_post"), ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")],
)
def test_what_llamascopium_saves_encodes_and_decodes_as_there(
    tmp_path: Path, hooks: tuple[str, str], function: str, by_norm: bool
):
    from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
    from llamascopium.models.sparse_dictionary import SparseDictionary

    config = SAEConfig(
        hook_point_in=hooks[0],
        hook_point_out=hooks[1],
        d_model=4,
        expansion_factor=2,
        act_fn=function,
        sparsity_include_decoder_norm=by_norm,
        top_k=3,
    )
    made = SparseAutoEncoder(config)
    fill(made)
    made.set_dataset_average_activation_norm(dict(zip(hooks, (7.0, 11.0), strict=True)))
    made.save_pretrained(tmp_path)
    config.save_hyperparameters(tmp_path)
    back = SparseDictionary.from_pretrained(str(tmp_path))
    acts = back.encode(back.normalize_activations({hooks[0]: X})[hooks[0]])
    ranked = back.decoder_norm() if function == "topk" and by_norm else 1
    differ(one(tmp_path), acts * ranked, back.decode(acts) / back.compute_norm_factor(X, hooks[1]))


# sparsify writes, saeflow reads


def dense(found: Any, n_features: int = 7) -> Tensor:
    acts = torch.zeros(len(found.top_acts), n_features)
    return acts.scatter_(-1, found.top_indices, found.top_acts.detach())


@needs_sparsify
@pytest.mark.parametrize(
    ("told", "hookpoint"),
    [
        ({"num_latents": 7}, "layers.3"),
        ({"expansion_factor": 2, "num_latents": 0}, "layers.3.attention"),
        ({"num_latents": 7, "transcode": True}, "layers.3.mlp"),
        ({"num_latents": 7, "transcode": True, "skip_connection": True}, "layers.3.mlp"),
    ],
)
def test_what_sparsify_saves_encodes_and_decodes_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], hookpoint: str
):
    monkeypatch.setattr(torch, "compile", lambda fn=None, **_: fn if fn is not None else (lambda g: g))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sparsify import SparseCoder, SparseCoderConfig
    sae = SparseCoder(4, SparseCoderConfig(k=3, **told))
    fill(sae)
    sae.save_to_disk(tmp_path / "sae-tiny" / hookpoint)
    back = SparseCoder.load_from_disk(tmp_path / "sae-tiny" / hookpoint)
    found = back.encode(X)
    out = back.decode(found.top_acts, found.top_indices)
    out = out if back.W_skip is None else out + X @ back.W_skip.mT
    d = one(tmp_path / "sae-tiny" / hookpoint)
    assert d.is_transcoder == bool(told.get("transcode"))
    differ(d, dense(found, d.n_features), out)
