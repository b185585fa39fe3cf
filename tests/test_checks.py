"""The run-time checks of shapes that tests/conftest.py turns on are on."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from saeflow.report.tables import score_summary

from .conftest import modules_with_shapes


def test_an_array_of_another_shape_or_type_is_refused():
    assert score_summary(np.array([0.25, 0.75], np.float32))["mean best"] == 0.5
    for wrong in (np.zeros((2, 2), np.float32), np.zeros(2), [0.25, 0.75]):
        with pytest.raises(TypeCheckError):
            score_summary(wrong)


def test_modules_with_arrays_are_found():
    found = modules_with_shapes()
    assert len(found) > 50
    assert {"saeflow.matching.topk", "saeflow.sources.dictionary", "saeflow.sources.model"} <= set(found)
