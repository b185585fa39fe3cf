"""What finds the candidates changes no bit of the answer; what is fastest is measured once and can be set."""

import json
import logging
import math

import pytest
import torch

from saeflow.errors import InvalidArgument
from saeflow.matching import screening
from saeflow.matching.screening import PRODUCTS, Rounded, dots, product_seconds, rounded_for
from saeflow.matching.topk import top_k_both

CPU = torch.device("cpu")


def unit(n, d, seed):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def speeds(monkeypatch, **seconds):
    """A processor of these seconds for a multiply-add, on which all matrices are large enough."""
    monkeypatch.delenv(screening.VARIABLE, raising=False)
    monkeypatch.setattr(screening, "SMALLEST", 1)
    monkeypatch.setattr(screening, "product_seconds", lambda device, width: seconds)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache folder of its own, and nothing remembered."""
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path))
    screening._product_seconds.cache_clear()
    yield tmp_path / "products.json"
    screening._product_seconds.cache_clear()


@pytest.mark.parametrize("unlike", [1, 100])
def test_every_product_and_every_tiling_gives_the_same_bits(unlike):
    a = unit(700, 96, 0)
    b = torch.nn.functional.normalize(a[torch.randperm(700)] + unlike * unit(700, 96, 1))
    whole = top_k_both(a, b, 5, product="float32")
    for product in PRODUCTS:
        for rows, columns in ((1024, 16384), (64, 100)):
            for found, expected in zip(
                top_k_both(a, b, 5, rows=rows, columns=columns, product=product), whole, strict=True
            ):
                assert torch.equal(found.index, expected.index)
                assert torch.equal(found.score, expected.score)


def test_dots_are_those_of_the_rows():
    one, other = unit(40, 33, 2), unit(50, 33, 3)
    i, j = torch.randint(40, (300,)).sort().values, torch.randint(50, (300,))
    assert torch.allclose(dots(one, i, other, j), (one[i] * other[j]).sum(dim=1), atol=1e-6)


@pytest.mark.parametrize(
    ("seconds", "noise", "k", "chosen"),
    [
        ({"float32": 1.0, "bfloat16": 3.0, "int8": 2.0, "dot": 1.0}, 0.1, 1, "float32"),
        ({"float32": 4.0, "bfloat16": 1.0, "dot": 1.0}, 1.0, 3, "bfloat16"),
        ({"float32": 9.0, "bfloat16": 4.0, "int8": 1.0, "dot": 9.0}, 0.1, 1, "int8"),
        ({"float32": 20.0, "bfloat16": 4.0, "int8": 1.0, "dot": 300.0}, 9.0, 5, "bfloat16"),
        ({"float32": 9.0, "bfloat16": 4.0, "int8": 1.0, "dot": 9999.0}, 9.0, 5, "float32"),
        ({"float32": 9.0, "dot": 1.0}, 1.0, 1, "float32"),
    ],
)
def test_the_choice_weighs_the_product_against_the_candidates_it_leaves(monkeypatch, caplog, seconds, noise, k, chosen):
    speeds(monkeypatch, **seconds)
    a = unit(500, 256, 4)
    b = torch.nn.functional.normalize(a + noise * unit(500, 256, 5))
    with caplog.at_level(logging.INFO, "saeflow.matching"):
        assert {side.product for side in rounded_for(a, b, k)} == {chosen}
    tried = [kind for kind in ("bfloat16", "int8") if seconds.get(kind, math.inf) < seconds["float32"]]
    assert bool(caplog.messages) == bool(tried)
    assert all(f"chosen: {chosen}" in line for line in caplog.messages)


def test_an_argument_and_the_environment_set_the_product(monkeypatch):
    speeds(monkeypatch, float32=1.0, bfloat16=9.0, int8=9.0, dot=1.0)
    a, b = unit(30, 16, 6), unit(40, 16, 7)
    assert rounded_for(a, b, 1, "int8")[0].product == "int8"
    monkeypatch.setenv(screening.VARIABLE, "bfloat16")
    assert rounded_for(a, b, 1)[0].product == "bfloat16"
    assert rounded_for(a, b, 1, "float32")[0].product == "float32"
    monkeypatch.setenv(screening.VARIABLE, "float8")
    with pytest.raises(InvalidArgument, match=r"'float8'\. Known: float32, bfloat16, int8"):
        top_k_both(a, b, 1)


def test_where_int8_cannot_be_multiplied_bfloat16_takes_its_place(monkeypatch, caplog):
    a, b = unit(30, 16, 6), unit(40, 16, 7)
    monkeypatch.setenv(screening.VARIABLE, "int8")
    with caplog.at_level(logging.INFO, "saeflow.matching"):
        assert rounded_for(a, b, 1)[0].product == "int8"
        assert not caplog.messages
        # "meta" stands for any device but the processor; it holds no numbers
        monkeypatch.setattr(screening, "_norms", lambda rows: rows.new_zeros(len(rows)))
        assert {side.product for side in rounded_for(a.to("meta"), b.to("meta"), 1)} == {"bfloat16"}
        monkeypatch.setattr(screening, "_WIDEST", 15)
        assert {side.product for side in rounded_for(a, b, 1)} == {"bfloat16"}
    assert ["int8 is not used on" in line for line in caplog.messages] == [True, True]


def test_small_matrices_measure_nothing(fresh):
    top_k_both(unit(100, 64, 8), unit(100, 64, 9), 2)
    assert not fresh.exists()


def test_speeds_are_measured_once_for_all_widths_of_a_kind(fresh, monkeypatch):
    found = product_seconds(CPU, 60)
    assert {"float32", "dot"} <= found.keys() <= {*PRODUCTS, "dot"}
    assert all(0 < seconds < 1 for seconds in found.values())
    monkeypatch.setattr(screening, "_measured", lambda *_: pytest.fail("measured again"))
    screening._product_seconds.cache_clear()
    assert product_seconds(CPU, 64) == found
    assert list(json.loads(fresh.read_text()).values()) == [found]


@pytest.mark.parametrize("held", [b"", b"{", b"[1]", b'{"a": 3}'])
def test_a_broken_file_of_speeds_is_measured_anew(fresh, held):
    fresh.write_bytes(held)
    found = product_seconds(CPU, 64)
    assert found in json.loads(fresh.read_text()).values()


def test_a_cache_folder_that_cannot_be_written_is_no_error(fresh):
    fresh.parent.rmdir()
    fresh.parent.write_text("a file")
    assert product_seconds(CPU, 64)["float32"] > 0


def test_rows_of_zeros_and_rows_with_one_entry_are_rounded_exactly():
    rows = torch.diag(torch.tensor([0.0, 1e-3, 1.0, 1e6]))
    for product in PRODUCTS:
        low = Rounded.of(rows, product)
        out = torch.empty(4, 4, dtype=low.written)
        low.multiply(low, slice(None), slice(None), out)
        assert torch.allclose(out.float(), rows**2, rtol=2**-8)
        assert torch.allclose(low.norm.float(), rows.amax(dim=1), rtol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-15, 1.0, 1e18, 1e30, 1e37])
def test_norms_are_rounded_up_at_every_size(size):
    rows = size * torch.cat([unit(20, 2304, 3), torch.full((1, 2304), 0.5), torch.eye(2, 2304)])
    exact = rows.double().norm(dim=1)
    norms = screening._norms(rows)
    assert (norms >= exact).all()
    assert (norms <= exact * (1 + 1e-3)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("product", ["bfloat16", "int8"])
def test_a_gpu_in_fewer_bits_gives_what_it_gives_in_float32(product):
    a, b = unit(3000, 250, 18).cuda(), unit(2500, 250, 19).cuda()
    for found, expected in zip(
        top_k_both(a, b, 5, product=product), top_k_both(a, b, 5, product="float32"), strict=True
    ):
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.score, expected.score)
