"""Local stand-ins for the network services that the jobs use: a hub, Neuronpedia's exports, a chat API.

They run in a separate process, so that killing a job does not affect them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests" / "sources")) if path not in sys.path]
REPO, LAYERS, N, D = "google/gemma-scope-2b-pt-res", 4, 4000, 64
EXPORTS = "gpt2-small"


@dataclass(frozen=True)
class Services:
    """The addresses of the services, and the recipe of the hub's release."""

    hub: str
    exports: str
    chat: str
    recipe: str


@contextmanager
def services(folder: Path, *, hub: bool = True) -> Generator[Services]:
    """Run the services inside the `with` block; `folder` receives the recipe and the source files of the hub's release.

    Without `hub` no hub is started, and nothing it needs is imported.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    folder.mkdir(parents=True)
    process = context.Process(target=_serve, args=(there, folder, hub), daemon=True)
    process.start()
    there.close()
    try:
        yield Services(**here.recv())
    finally:
        process.terminate()
        process.join()


def use_hub(url: str) -> None:
    """Make huggingface_hub in this process use a local hub, and store downloads in saeflow's cache."""
    from huggingface_hub import constants

    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(Path(os.environ["SAEFLOW_CACHE"]) / "hub")
    constants.HF_HUB_OFFLINE = False


def _serve(told: Connection, folder: Path, with_hub: bool) -> None:
    from tests.labels import service
    from tests.steering.judges import server

    with ExitStack() as stack:
        url, recipe = _hub(stack, folder) if with_hub else ("", "")
        exports = stack.enter_context(service.serving())
        for layer in range(3):
            _add_exports(exports, layer)
        chat = stack.enter_context(server.serving(_reads))
        told.send({"hub": url, "exports": exports.url, "chat": chat.url, "recipe": recipe})
        stack.enter_context(_until(told))


def _hub(stack: ExitStack, folder: Path) -> tuple[str, str]:
    import hub_server

    hub = stack.enter_context(hub_server.serving())
    _fill_hub(hub, folder)
    return hub.hub_url, hub_server.recipe(folder / "mine.toml", _recipe(), layers=LAYERS)


@contextmanager
def _until(told: Connection) -> Generator[None]:
    """Wait, on entering, until the other end of the pipe is closed."""
    with suppress(EOFError):
        told.recv()
    yield


def _recipe() -> str:
    files = '[[files]]\npart = "res"\n' + f'repo = "{REPO}"\n'
    path = "layer_{layer}/width_16k/average_l0_73/params.npz"
    return files + f'paths = ["{path}"]\nlayers = {list(range(LAYERS))}\n'


def _fill_hub(hub, folder: Path) -> None:
    import layouts

    for layer in range(LAYERS):
        layouts.write_gemma_scope(folder / "made", layouts.arrays(layer, n_features=N, d_in=D), layer=layer)
    hub.put(REPO, folder / "made" / "gemma-scope-2b-pt-res")


def _add_exports(service, layer: int, n: int = 3000) -> None:
    source, root = f"{layer}-res", f"v1/{EXPORTS}/{layer}-res"
    same = {"modelId": EXPORTS, "layer": source}
    labels = [
        {**same, "index": str(i), "description": f"label {i} at {layer}", "explanationModelName": "some"}
        for i in range(n)
    ]
    features = [{**same, "index": str(i), "pos_str": [f" up{i}", " "], "frac_nonzero": i / n} for i in range(n)]
    for number in range(3):
        some = slice(number * n // 3, (number + 1) * n // 3)
        service.add(f"{root}/explanations/batch-{number}.jsonl.gz", labels[some])
        service.add(f"{root}/features/batch-{number}.jsonl.gz", features[some])


def _reads(asked):
    """Answer like a labeller: name the marked word of the first passage, or say which passages contain the word."""
    from tests.steering.judges.server import says

    text = asked.messages[1]["content"]
    if "The feature fires on:" not in text:
        found = re.search("<<(.*?)>>", text)
        return says(json.dumps({"explanation": f"the word {found[1] if found else 'none'}"}))
    found = re.search("fires on: the word (.*)", text)
    word = found[1] if found else "none"
    return says(json.dumps({"fires": [int(word in passage) for passage in text.split("Passage ")[1:]]}))
