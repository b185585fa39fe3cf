"""What workers can open by name, and folders that must be alike."""

from saeflow.sources.formats import save_release
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import load_model


class Named:
    """A planted model and its dictionaries, saved and opened by name as a worker opens them."""

    def __init__(self, folder, model, dictionaries):
        model.hf_model.save_pretrained(folder / "model")
        model.tokenizer.save_pretrained(folder / "model")
        save_release(folder / "saes", dictionaries, name="planted", model="")
        self.model, self.dictionaries = load_model(folder / "model"), load_dictionaries(folder / "saes")


def compare(one, other):
    """The same files with the same bytes, but for the manifest, which says when it ended."""
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert len(names) > 3
    for name in names:
        if name.name != "manifest.json":
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
