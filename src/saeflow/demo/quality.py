"""What the build measured of the demo pack. No torch."""

from __future__ import annotations

import json
from typing import Any, cast

from saeflow.errors import BadFile
from saeflow.files import PACK


def quality() -> dict[str, Any]:
    """The measurement that scripts/build_demo.py stored: `model`, `saes` and `flow`.

    Losses are in nats per token and bits per byte on held-out text; `fve` is the fraction of variance
    explained, `l0` the mean number of active features, `dead` the share of features that never fired on
    the held-out text, `loss recovered` is (L_zero - L_spliced) / (L_zero - L_clean).

    Raises:
        BadFile: when the pack has no such file.
    """
    path = PACK / "quality.json"
    try:
        return cast("dict[str, Any]", json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read ({error}). Install saeflow again: its demo pack is incomplete.") from None
