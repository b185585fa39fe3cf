"""Some rows of a dictionary as a dictionary, read from its file by range, for those too large to read whole."""

from __future__ import annotations

import torch

from saeflow.errors import InvalidArgument
from saeflow.sources.activations import Activation, TopK
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.weights import RowRange


def rows_from(dictionary: Dictionary, start: int, stop: int) -> Dictionary:
    """The features `start` to `stop` - 1; feature i of the result is feature `start` + i. Reads nothing yet.

    Its directions, encoder rows and thresholds are those of the whole. Under a TopK the features of the whole compete,
    so that what it encodes is not a part of what the whole encodes.

    Raises:
        InvalidArgument: when the range is empty or outside the dictionary.
    """
    if not 0 <= start < stop <= dictionary.n_features:
        raise InvalidArgument(
            f"rows {start} to {stop} are no range of the {dictionary.n_features} features at {dictionary.site}."
        )

    def activation() -> Activation:
        whole = dictionary.activation
        return whole if isinstance(whole, TopK) else whole.of(torch.arange(start, stop))

    weights = dictionary._weights  # pyright: ignore[reportPrivateUsage]  (a part of its own kind)
    return Dictionary.reading(
        dictionary.site,
        tap=dictionary.tap,
        weights=RowRange(weights, start, stop),
        activation=activation,
        preprocessing=dictionary.preprocessing,
        told=dictionary.told,
    )
