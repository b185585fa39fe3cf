"""How many bytes of a release matching fetches: only the tensors it reads, or whole files.

    python benchmarks/remote.py [--json] [--quick]

A local hub and CDN serve planted releases in the layouts and shapes of Gemma Scope 2B (.npz, 16,384 features of width
2,304) and Gemma Scope 2 for the 1B model (.safetensors, width 1,152), with two sites each. For each, the script builds
an atlas twice, reads every other tensor, and, for comparison, builds an atlas from whole files. The server, which is
that of the tests, counts the bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from _timing import arguments, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "sources"))
from hub_server import Hub, serving


@dataclass(frozen=True, slots=True)
class Served:
    """The bytes served for one step on a release; `files` is the total size of its files."""

    release: str
    done: str
    files: int
    served: int
    requests: int
    seconds: float


SHAPES = {"npz": (16_384, 2_304), "safetensors": (16_384, 1_152)}
LINES = {
    "npz": """
part = "res"
repo = "google/gemma-scope-2b-pt-res"
paths = ["layer_{layer}/width_16k/average_l0_73/params.npz"]
""",
    "safetensors": """
part = "res"
repo = "google/gemma-scope-2-1b-pt"
paths = ["resid_post/layer_{layer}_width_16k_l0_medium/params.safetensors"]
optional = ["resid_post/layer_{layer}_width_16k_l0_medium/config.json"]
""",
}
NAMES = {"npz": "Gemma Scope 2B, two sites", "safetensors": "Gemma Scope 2 1B, two sites"}


def plant(hub: Hub, folder: Path, kind: str, n: int, d: int) -> str:
    """Write two sites, serve them, and return the recipe."""
    from layouts import arrays, write_gemma_scope, write_gemma_scope_2

    for layer in (0, 1):
        made = arrays(seed=layer, n_features=n, d_in=d)
        if kind == "npz":
            write_gemma_scope(folder / str(layer), made, layer=layer)
            hub.put("google/gemma-scope-2b-pt-res", folder / str(layer) / "gemma-scope-2b-pt-res")
        else:
            place = write_gemma_scope_2(folder / str(layer), made, hook=f"model.layers.{layer}.output")
            place.rename(place.with_name(f"layer_{layer}_width_16k_l0_medium"))
            hub.put("google/gemma-scope-2-1b-pt", folder / str(layer))
    path = folder / "recipe.toml"
    path.write_text(f'model = "me/model"\nlayers = 2\n[[files]]\n{LINES[kind]}')
    return str(path)


def measure(hub: Hub, kind: str, n: int, d: int) -> list[Served]:
    """Build an atlas by byte range, build it again, read all tensors; then build it from whole files."""
    import huggingface_hub
    from huggingface_hub import constants

    from saeflow.matching.build import build_atlas
    from saeflow.sources.library import load_dictionaries

    rows: list[Served] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = plant(hub, folder, kind, n, d)
        files = sum(len(data) for key, data in hub.files.items() if not key.endswith(".json"))

        def step(done: str, act: Callable[[], object]) -> None:
            hub.forget()
            start = time.perf_counter()
            act()
            rows.append(Served(NAMES[kind], done, files, hub.served, len(hub.log), time.perf_counter() - start))

        def build(out: str) -> None:
            build_atlas(load_dictionaries(recipe), out=folder / out, k=5)

        def read_all() -> None:
            for dictionary in load_dictionaries(recipe).values():
                _ = dictionary.W_enc, dictionary.b_enc, dictionary.b_dec, dictionary.activation

        constants.HF_HUB_CACHE = str(folder / "cache")
        step("atlas, by byte range", lambda: build("atlas"))
        step("atlas again", lambda: build("again"))
        step("then every other tensor", read_all)
        os.environ["SAEFLOW_WHOLE_FILES"] = "1"
        constants.HF_HUB_CACHE = str(folder / "whole")
        step("atlas, whole files", lambda: build("whole"))
        del os.environ["SAEFLOW_WHOLE_FILES"]
        huggingface_hub.close_session()
        hub.files.clear()
    return rows


def as_markdown(rows: list[Served]) -> str:
    """The rows as a Markdown table."""
    head = "| release | done | MB of its files | MB served | share | requests |\n|---|---|---:|---:|---:|---:|\n"
    return head + "\n".join(
        f"| {r.release} | {r.done} | {r.files / 1e6:,.1f} | {r.served / 1e6:,.1f} | {r.served / r.files:.1%} | "
        f"{r.requests} |"
        for r in rows
    )


def main() -> None:
    told = arguments(__doc__).parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with serving() as hub:
        os.environ["HF_ENDPOINT"] = hub.hub_url  # before huggingface_hub is imported
        rows = [
            row
            for kind, (n, d) in SHAPES.items()
            for row in measure(hub, kind, *((1_024, 256) if told.quick else (n, d)))
        ]
    if told.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(f"{machine()}\n\n{as_markdown(rows)}")


if __name__ == "__main__":
    main()
