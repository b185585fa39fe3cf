"""What every reader shares: tensors read one at a time, and bad files named with what is wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope, write_sae_lens
from layouts_more import write_dictionary_learning, write_sparsify
from reading import WRITERS, H, folder_of, one, read_tensors, tensor_file, write_tensors
from safetensors.torch import save_file

from saeflow.errors import BadFile, InvalidArgument, UnknownSite, UnsupportedFormat
from saeflow.ids import Part, Site
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats import discover, load
from saeflow.sources.formats.tensors import NpzFile, SafetensorsFile, TorchFile
from saeflow.sources.library import load_dictionaries


@pytest.mark.parametrize("write", WRITERS)
def test_opening_reads_no_tensor_and_directions_read_the_decoder_alone(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    reads: list[str] = []
    for file in (NpzFile, SafetensorsFile, TorchFile):
        monkeypatch.setattr(file, "read", lambda self, name, old=file.read: (reads.append(name), old(self, name))[1])
    d = one(write(tmp_path, arrays()))
    assert (d.n_features, d.d_in, reads) == (7, 4, [])
    d.directions()
    assert len(reads) == 1
    assert reads[0].lower() in ("w_dec", "decoder.weight")
    d.encode(torch.from_numpy(H))
    assert len({name.lower() for name in reads}) == len(reads)


@pytest.mark.parametrize("write", WRITERS)
def test_a_missing_tensor_is_named_where_it_is_needed_and_directions_need_the_decoder_alone(
    tmp_path: Path, write: Callable[..., Path]
):
    path = tensor_file(write(tmp_path, arrays()))
    folder = path if path.suffix == ".npz" else folder_of(path)
    named = read_tensors(path)
    directions = one(folder).directions()
    for name in sorted(named):
        write_tensors(path, {key: value for key, value in named.items() if key != name})
        with pytest.raises(BadFile, match=rf"{path.name}: tensor '(?i:{name})' is missing"):
            _use(one(folder), directions)


def _use(d: Dictionary, directions: torch.Tensor) -> None:
    torch.testing.assert_close(d.directions(), directions, rtol=0, atol=0)
    h = torch.from_numpy(H)
    d.decode(d.encode(h), h)


@pytest.mark.parametrize("write", WRITERS)
def test_a_wrong_shape_is_named_with_expected_and_got(tmp_path: Path, write: Callable[..., Path]):
    path = tensor_file(write(tmp_path, arrays()))
    named = read_tensors(path)
    for name, value in named.items():
        if name.lower() in ("w_dec", "decoder.weight"):
            continue
        write_tensors(path, {**named, name: value[..., :-1]})
        got, want = list(value[..., :-1].shape), list(value.shape)
        with pytest.raises(BadFile) as caught:
            load(path if path.suffix == ".npz" else folder_of(path))
        for part in (path.name, f"tensor {name!r} has shape {got}", f"expected {want}"):
            assert part in str(caught.value)


@pytest.mark.parametrize("write", WRITERS)
def test_a_truncated_file_is_named(tmp_path: Path, write: Callable[..., Path]):
    path = tensor_file(write(tmp_path, arrays()))
    data = path.read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(BadFile, match=rf"{path.name}: cannot be opened as .*fetch it again"):
            load(path if path.suffix == ".npz" else folder_of(path))


@pytest.mark.parametrize("write", WRITERS)
def test_nan_in_a_decoder_row_names_file_tensor_and_row_where_all_rows_are_needed(
    tmp_path: Path, write: Callable[..., Path]
):
    a = arrays()
    a.W_dec[3, 1] = np.nan
    d = one(write(tmp_path, a))
    assert d.directions().any(dim=1).tolist() == [True, True, True, False, True, True, True]
    with pytest.raises(BadFile, match=r"(npz|safetensors|pt): tensor 'W_dec' has NaN .* in 1 of 7 rows .*\[3\]"):
        d.W_dec  # noqa: B018


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
    (tmp_path / "sae.bin").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "sae.bin"):
        with pytest.raises(
            UnsupportedFormat, match=r"sae-lens v6 .*Gemma Scope .*Llama Scope|saeflow folder .*Llama Scope"
        ):
            load(path)
    (tmp_path / "saes.tar.gz").write_bytes(b"x")
    with pytest.raises(UnsupportedFormat, match=r"saes\.tar\.gz is a packed file\. Unpack it"):
        load(tmp_path / "saes.tar.gz")
    with pytest.raises(InvalidArgument, match="gone does not exist"):
        load(tmp_path / "gone")


def test_a_tree_of_several_formats_is_searched(tmp_path: Path):
    write_gemma_scope(tmp_path / "a", arrays(), part="mlp", layer=2)
    write_llama_scope(tmp_path / "b", arrays())
    write_sae_lens(tmp_path / "c" / "d", arrays())
    assert [str(site) for site in discover(tmp_path).openers] == ["2/mlp", "3/res", "5/res"]
    assert one(tmp_path, Site(3, Part.RES)).n_features == 7
    with pytest.raises(UnknownSite, match=r"no dictionary at 9/res. It has 2/mlp, 3/res, 5/res"):
        load(tmp_path, Site(9, Part.RES))


def test_of_two_saes_at_one_site_a_pattern_chooses_and_the_refusal_names_both(tmp_path: Path):
    write_gemma_scope(tmp_path, arrays(1), l0=73)
    write_gemma_scope(tmp_path, arrays(2), l0=158)
    write_gemma_scope(tmp_path, arrays(3), layer=3)
    site = Site(24, Part.RES)
    assert one(tmp_path, Site(3, Part.RES)).n_features == 7
    with pytest.raises(InvalidArgument, match=r"2 .* at 24/res: .*l0_158, .*l0_73.*pattern='.*layer_\*/width"):
        load(tmp_path, site)
    for pattern in ("average_l0_158", "*l0_158", "gemma-scope-2b-pt-res/layer_24/*_158"):
        found = load(tmp_path, site, pattern=pattern)
        np.testing.assert_array_equal(found.W_dec.numpy(), arrays(2).W_dec)
    with pytest.raises(InvalidArgument, match=r"pattern 'l0_9\*' fits none of the 3 dictionaries"):
        load(tmp_path, pattern="l0_9*")


# each writes an SAE that has no place: of every format one at no site, or one that cannot be read
ALIENS: dict[str, Callable[[Path], object]] = {
    "gpt2's first stream": lambda root: write_sae_lens(
        root, arrays(), metadata={"hook_name": "blocks.0.hook_resid_pre"}
    ),
    "one head": lambda root: write_sae_lens(root, arrays(), metadata={"hook_head_index": 3}),
    "gemma's embedding": lambda root: (
        write_gemma_scope(root, arrays()).parents[2].rename(root / "gemma-scope-2b-pt-res" / "embedding")
    ),
    "gemma 2's middle": lambda root: write_gemma_scope_2(root, arrays(), hook="model.embed_tokens.output"),
    "llama's middle": lambda root: write_llama_scope(root, arrays(), hook="blocks.3.hook_resid_mid"),
    "sparsify's embed_tokens": lambda root: write_sparsify(root, arrays(), hookpoint="embed_tokens"),
    "pythia's embed": lambda root: write_dictionary_learning(root, arrays(), submodule="embed", config={}).rename(
        root / "embed"
    ),
    "a crosscoder": lambda root: write_dictionary_learning(
        root, arrays(), config={"trainer": {"dict_class": "CrossCoder"}}
    ),
    "a truncated file": lambda root: tensor_file(write_sae_lens(root, arrays())).write_bytes(b"12345678"),
    "a broken cfg.json": lambda root: (write_sae_lens(root, arrays()) / "cfg.json").write_text("{"),
}


@pytest.mark.parametrize("alien", ALIENS.values(), ids=ALIENS.keys())
def test_an_sae_without_a_place_is_left_out_by_name_and_the_others_open(
    tmp_path: Path, alien: Callable[[Path], object]
):
    alien(tmp_path / "alien")
    with pytest.raises(BadFile) as alone:
        discover(tmp_path)
    write_gemma_scope(tmp_path / "good", arrays(), part="mlp", layer=2)
    found = load_dictionaries(tmp_path)
    assert found[Site(2, Part.MLP)].n_features == 7
    [(name, why)] = found.left_out.items()
    assert (name.split("/")[0], why) == ("alien", str(alone.value))
    assert "1 left out" in repr(found)
    with pytest.raises(UnknownSite, match=rf"no dictionary at 0/res.*Left out: {name} \("):
        found[Site(0, Part.RES)]


# .npz members


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pad", range(5))
def test_npz_members_are_read_whatever_their_type_order_and_alignment(tmp_path: Path, dtype: str, order: Any, pad: int):
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


# files that claim more than they hold


@pytest.mark.parametrize("claimed", [2**63, 2**40, 10**8 + 1])
def test_a_safetensors_header_that_claims_more_than_the_file_is_refused(tmp_path: Path, claimed: int):
    path = tensor_file(write_sae_lens(tmp_path, arrays()))
    path.write_bytes(claimed.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(BadFile, match=r"sae_weights\.safetensors: cannot be opened as safetensors"):
        load(folder_of(path))


def test_a_safetensors_tensor_that_claims_more_than_the_file_is_refused(tmp_path: Path):
    path = tensor_file(write_sae_lens(tmp_path, arrays()))
    header = b'{"W_dec":{"dtype":"F32","shape":[1000000000,1000000],"data_offsets":[0,4000000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(BadFile, match=r"sae_weights\.safetensors: cannot be opened as safetensors"):
        load(folder_of(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(10**9, 10**6), (2**62, 4)])
def test_an_npz_member_that_claims_more_than_it_holds_is_refused(tmp_path: Path, method: int, shape: tuple[int, int]):
    """The second shape is 0 where a product of 64 bits wraps."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("W_dec.npy", member)
    with pytest.raises(BadFile, match=r"x\.npz: .*W_dec\.npy holds"):
        NpzFile(tmp_path / "x.npz")


def test_a_config_nested_without_end_is_refused(tmp_path: Path):
    folder = write_sae_lens(tmp_path, arrays())
    (folder / "cfg.json").write_text('{"a":' * 100_000)
    with pytest.raises(BadFile, match=r"cfg\.json: cannot be read as JSON"):
        load(folder)
