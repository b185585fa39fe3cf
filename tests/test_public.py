"""The public names are sorted, true, and imported at first use."""

import subprocess
import sys

import pytest

import saeflow


def test_all_is_sorted_and_every_name_is_there():
    assert list(saeflow.__all__) == sorted(saeflow.__all__)
    assert set(saeflow.__all__) == {*saeflow._HOME, "__version__"}
    for name in saeflow.__all__:
        assert getattr(saeflow, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = saeflow.no_such_name


DRAW = """from saeflow import FeatureId, open_atlas, trace, render
g = trace(FeatureId.parse('4/res/1'), open_atlas('demo'))
render(g, to='text'), render(g, to='html')"""


@pytest.mark.parametrize("use", ["import saeflow", DRAW, "import saeflow.cli"])
def test_no_torch_is_loaded_to_open_an_atlas_and_draw_a_graph(use):
    code = f"{use}\nimport sys; assert 'torch' not in sys.modules, 'torch'; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
