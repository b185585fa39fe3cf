"""The measurements made when a pack was built. Does not import torch."""

from __future__ import annotations

import json
from typing import Any, cast

from saeflow.errors import BadFile, UnknownRelease
from saeflow.files import pack_folder, pack_names


def quality(pack: str = "demo") -> dict[str, Any]:
    """The measurements stored by the script that built the pack: `model`, `saes` and `flow`.

    Losses are in nats per token and bits per byte on held-out text; `fve` is the fraction of variance
    explained, `l0` the mean number of active features, `dead` the share of features that never fired on
    the held-out text, and `loss recovered` is (L_zero - L_spliced) / (L_zero - L_clean).

    Raises:
        UnknownRelease: when there is no such pack.
        BadFile: when its file cannot be read.
    """
    folder = pack_folder(pack)
    if folder is None:
        raise UnknownRelease(f"{pack!r} is no pack on this machine. Packs: {', '.join(pack_names())}.")
    path = folder / "quality.json"
    try:
        return cast("dict[str, Any]", json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Install saeflow again: its pack is incomplete.") from None
