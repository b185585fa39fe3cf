"""Tensors of files on a hub by byte range, of each format; and what of them is here."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import COMMIT, Hub, recipe
from layouts import Arrays, arrays, write_gemma_scope, write_gemma_scope_2, write_llama_scope, write_sae_lens
from remote_release import DECODER, NPZ, NPZ_RECIPE, SITE, D, N, same, size_of

from saeflow.errors import BadFile
from saeflow.ids import Site
from saeflow.matching.build import build_atlas
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.formats import remote_tensors
from saeflow.sources.formats.remote_tensors import read_index
from saeflow.sources.hub import CacheState, cache_state
from saeflow.sources.library import load_dictionaries
from saeflow.sources.releases import read_release


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_every_npz_reads_as_the_whole_file_does(hub: Hub, planted: Arrays, tmp_path: Path, pack: bool, lower: bool):
    write_gemma_scope(tmp_path / "made", planted, pack=pack, lower=lower)
    hub.put("google/gemma-scope-2b-pt-res", tmp_path / "made" / "gemma-scope-2b-pt-res")
    found = load_dictionaries(recipe(tmp_path / "mine.toml", NPZ_RECIPE, layers=26))[SITE]
    same(found, planted)
    assert "/saeflow/" in found.origin


def test_members_beyond_four_gigabytes_are_found(tmp_path: Path):
    """ZIP64, the directory far from the start; only its few kilobytes are asked for."""
    path = tmp_path / "big.npz"
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with zipfile.ZipFile(path, "w") as archive:
        hole = zipfile.ZipInfo("hole.bin")
        with archive.open(hole, "w", force_zip64=True) as member:
            member.write(b"0")
        with archive.open("W_dec.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, values)
    data = path.read_bytes()
    big = Grown(data, 5 << 30)
    index = read_index("big.npz", big.size, big.at)
    at = index["W_dec"]
    assert at.start > 5 << 30
    np.testing.assert_array_equal(np.frombuffer(big.at(at.start + at.offset, at.stop), "<f4").reshape(2, 3), values)
    assert big.asked < 8 * 2**14


class Grown:
    """A zip with a gap before its second member: offsets in the directory and its ZIP64 end are moved."""

    def __init__(self, data: bytes, gap: int) -> None:
        second = data.index(b"PK\x03\x04", 4)
        directory = data.index(b"PK\x01\x02")
        entry = data.index(b"PK\x01\x02", directory + 4)
        name = struct.unpack_from("<H", data, entry + 28)[0]
        fixed = bytearray(data[entry : entry + 46])
        struct.pack_into("<H", fixed, 30, 12)
        struct.pack_into("<I", fixed, 42, 0xFFFFFFFF)
        extra = struct.pack("<HHQ", 1, 8, second + gap)
        entries = data[directory:entry] + bytes(fixed) + data[entry + 46 : entry + 46 + name] + extra
        start = directory + gap
        end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 2, 2, len(entries), start)
        locator = struct.pack("<IIQI", 0x07064B50, 0, start + len(entries), 1)
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        self.head, self.tail = data[:second], data[second:directory] + entries + end64 + locator + end
        self.gap, self.size, self.asked = gap, second + gap + len(self.tail), 0

    def at(self, start: int, stop: int) -> bytes:
        self.asked += stop - start
        shift = len(self.head) + self.gap
        return bytes(
            self.head[i] if i < len(self.head) else 0 if i < shift else self.tail[i - shift] for i in range(start, stop)
        )


SAFE_RECIPE = """
[[files]]
part = "res"
repo = "google/gemma-scope-2-1b-pt"
paths = ["resid_post/layer_{layer}_width_16k_l0_medium/params.safetensors"]
optional = ["resid_post/layer_{layer}_width_16k_l0_medium/config.json"]
layers = [7]
"""


def safetensors_release(hub: Hub, planted: Arrays, tmp_path: Path, *, config: bool = True) -> Dictionary:
    made = write_gemma_scope_2(tmp_path / "made", planted)
    if not config:
        (made / "config.json").unlink()
    hub.put("google/gemma-scope-2-1b-pt", tmp_path / "made")
    return load_dictionaries(recipe(tmp_path / "mine.toml", SAFE_RECIPE, layers=26))[Site.parse("7/res")]


@pytest.mark.parametrize("config", [True, False])
def test_safetensors_give_the_decoder_alone(hub: Hub, planted: Arrays, tmp_path: Path, config: bool):
    found = safetensors_release(hub, planted, tmp_path, config=config)
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    assert DECODER < hub.served < DECODER + 2 * 2**14
    same(found, planted)
    assert hub.served < size_of(hub) + 2 * 2**14


def test_a_whole_safetensors_file_is_held_against_the_sha256_of_the_hub(hub: Hub, planted: Arrays, tmp_path: Path):
    """Nothing in the format would show it."""
    found = safetensors_release(hub, planted, tmp_path)
    [key] = [key for key in hub.files if key.endswith(".safetensors")]
    good = hub.files[key]
    place = good.index(planted.W_dec[1000].tobytes())
    hub.etags = False
    hub.files[key] = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    _ = found.W_dec
    hub.files[key] = good
    for name in ("W_enc", "b_enc", "b_dec"):
        getattr(found, name)
    with pytest.raises(BadFile, match=r"does not have the sha256 .* by which the hub knows it, and was removed"):
        _ = found.activation
    found.unload()
    same(found, planted)
    assert list((tmp_path / "cache").rglob("ranges/*/whole"))


def test_half_precision_and_folders_of_several_files(hub: Hub, planted: Arrays, tmp_path: Path):
    """Llama Scope is bf16 with the config in the folder above; only its decoder is fetched."""
    made = write_llama_scope(tmp_path / "made", planted)
    hub.put("fnlp/saes", tmp_path / "made")
    expected = load_dictionaries(made)[Site.parse("3/res")]
    lines = """
[[files]]
part = "res"
repo = "fnlp/saes"
paths = [
  "Llama3_1-8B-Base-L{layer}R-8x/hyperparams.json",
  "Llama3_1-8B-Base-L{layer}R-8x/checkpoints/final.safetensors",
]
layers = [3]
"""
    found = load_dictionaries(recipe(tmp_path / "mine.toml", lines, layers=32))[Site.parse("3/res")]
    assert torch.equal(found.W_dec, expected.W_dec)
    assert DECODER // 2 < hub.served < DECODER // 2 + 2 * 2**14
    h = torch.randn(5, D)
    assert torch.equal(found.encode(h), expected.encode(h))


def test_formats_that_cannot_be_taken_apart_come_whole(hub: Hub, planted: Arrays, tmp_path: Path):
    folder = tmp_path / "made" / "resid_post_layer_3"
    folder.mkdir(parents=True)
    state = {
        "encoder.weight": torch.from_numpy(planted.W_enc),
        "encoder.bias": torch.from_numpy(planted.b_enc),
        "decoder.weight": torch.from_numpy(planted.W_dec).T.contiguous(),
        "bias": torch.from_numpy(planted.b_dec),
    }
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder", "layer": 3}}))
    hub.put("me/saes", tmp_path / "made")
    lines = """
[[files]]
part = "res"
repo = "me/saes"
paths = ["resid_post_layer_{layer}/config.json", "resid_post_layer_{layer}/ae.pt"]
layers = [3]
"""
    found = load_dictionaries(recipe(tmp_path / "mine.toml", lines, layers=6))[Site.parse("3/res")]
    np.testing.assert_array_equal(found.W_dec.numpy(), planted.W_dec)
    assert not any(one.range for one in hub.log)


def test_sae_lens_folders_come_apart_too(hub: Hub, planted: Arrays, tmp_path: Path):
    write_sae_lens(tmp_path / "made", planted)
    hub.put("me/saes", tmp_path / "made")
    lines = """
[[files]]
part = "res"
repo = "me/saes"
paths = ["blocks.{layer}.hook_resid_post/cfg.json", "blocks.{layer}.hook_resid_post/sae_weights.safetensors"]
layers = [5]
"""
    found = load_dictionaries(recipe(tmp_path / "mine.toml", lines, layers=6))[Site.parse("5/res")]
    same(found, planted)
    assert "/saeflow/" in found.origin


def test_an_atlas_needs_half_of_the_bytes_and_is_the_same(hub: Hub, tmp_path: Path):
    for layer in (0, 1):
        made = arrays(seed=layer, n_features=N, d_in=D)
        write_gemma_scope(tmp_path / "made" / str(layer), made, layer=layer)
        hub.put("me/saes", tmp_path / "made" / str(layer) / "gemma-scope-2b-pt-res")
    lines = """
[[files]]
part = "res"
repo = "me/saes"
paths = ["layer_{layer}/width_16k/average_l0_73/params.npz"]
"""
    name = recipe(tmp_path / "mine.toml", lines, layers=2)
    fetched = build_atlas(load_dictionaries(name), out=tmp_path / "atlas", k=3)
    assert 2 * DECODER < hub.served < 2 * (DECODER + 6 * 2**14)
    whole = build_atlas(load_dictionaries(tmp_path / "made"), out=tmp_path / "whole", k=3)
    pair = Site.parse("0/res"), Site.parse("1/res")
    np.testing.assert_array_equal(fetched[pair].index, whole[pair].index)
    np.testing.assert_array_equal(fetched[pair].score, whole[pair].score)


def test_what_is_here_is_told_without_a_network(hub: Hub, release, tmp_path: Path):
    entry = next(iter(read_release(str(tmp_path / "mine.toml")).sites.values()))
    states = [cache_state(entry)]
    opened = release()
    assert opened.to_fetch(SITE) == f"google/gemma-scope-2b-pt-res/{NPZ}"
    found = opened[SITE]
    states.append(cache_state(entry))
    assert opened.to_fetch(SITE) is None
    _ = found.W_dec
    states.append(cache_state(entry))
    _ = found.W_enc, found.b_enc, found.b_dec, found.activation
    hub.forget()
    states.append(cache_state(entry))
    assert states == [CacheState.NO, CacheState.HEADERS, CacheState.DECODER, CacheState.YES]
    assert hub.log == []


def test_two_commits_with_the_same_file_share_its_bytes(hub: Hub, release, planted, tmp_path: Path, monkeypatch):
    _ = release()[SITE].W_dec
    monkeypatch.setattr("hub_server.COMMIT", "f00d" + COMMIT[4:])
    hub.forget()
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), planted.W_dec)
    assert hub.served < 6 * 2**14
    assert len(list((tmp_path / "cache").rglob("params.npz"))) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'"saeflow-pointer"'])
def test_a_damaged_pointer_is_made_again(hub: Hub, release, planted: Arrays, tmp_path: Path, damage: bytes):
    _ = release()[SITE].W_dec
    [path] = (tmp_path / "cache").rglob("params.npz")
    path.write_bytes(remote_tensors._BEGINS + damage)
    np.testing.assert_array_equal(release()[SITE].W_dec.numpy(), planted.W_dec)


_HEADER = json.dumps({"W": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
WRONG_PLACES = len(_HEADER).to_bytes(8, "little") + _HEADER + b"12345678"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npz", b"PK" * 40, "headers cannot be read .File is not a zip file"),
        ("a.safetensors", b"\xff" * 40, r"a header of \d+ bytes in a file of 40"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "headers cannot be read"),
        ("a.safetensors", WRONG_PLACES, r"'W' of shape \[2, 2\] and type F32 is said to lie at 0 to 8"),
    ],
)
def test_headers_that_are_wrong_are_refused(name: str, data: bytes, message: str):
    with pytest.raises(BadFile, match=message):
        read_index(name, len(data), lambda start, stop: data[start:stop])
