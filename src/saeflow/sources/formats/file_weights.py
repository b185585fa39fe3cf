"""FileWeights: where a file keeps the tensors of one SAE, and those tensors turned so that rows are features.

Between a file of named tensors and a Dictionary: each reader says in a `layout` what its format calls a
tensor and which way round it is, and this does the turning. Shapes are checked from headers when a
dictionary is opened, values when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.sources.activations import Activation
from saeflow.sources.formats.tensors import TensorFile
from saeflow.sources.weights import Weights, check_values, expected_shapes


@dataclass(frozen=True)
class Stored:
    """Where a file keeps a tensor: its name, whether features are its columns, and what to multiply it by."""

    name: str
    transposed: bool = False
    times: float = 1.0


class FileWeights(Weights):
    """The tensors of one SAE in one file, turned so that rows are features.

    `layout` says for W_enc, b_enc, W_dec, b_dec and, where there is one, W_skip how the file stores it. Every
    other name in it (threshold, r_mag) is a vector with a number for each feature.
    """

    def __init__(self, file: TensorFile, layout: Mapping[str, Stored], *, transcoder: bool = False) -> None:
        """Check that W_dec is there, and every other tensor that is has a shape that goes with it; reads headers only.

        Of a transcoder W_enc must be there too, which tells its width: it may be another than that of W_dec. Any other
        that is missing is named when it is read: directions need W_dec alone.

        Raises:
            BadFile: naming the file, the tensor, and the shape expected and found.
        """
        self.file, self.layout, self.origin = file, layout, str(file.path)
        for name in ("W_dec", *(("W_enc",) if transcoder else ())):
            if len(file.shapes[self._stored(name).name]) != 2:
                self._refuse(name, "two axes: features and what they read or write")
        n_features, d_out = self._turned_shape("W_dec")
        d_in = self._turned_shape("W_enc")[1] if transcoder else d_out
        super().__init__(self.origin, (n_features, d_in), d_out, has_skip="W_skip" in layout)
        expected = expected_shapes(n_features, d_in, d_out)
        for name in (name for name in layout if layout[name].name in file.shapes):
            wanted = expected.get(name, self.shape[:1])
            if self._turned_shape(name) != wanted:
                want = wanted[::-1] if layout[name].transposed else wanted
                self._refuse(name, f"{list(want)} beside W_dec")

    def _stored(self, name: str) -> Stored:
        stored = self.layout[name]
        if stored.name not in self.file.shapes:
            raise BadFile(
                f"{self.origin}: tensor {stored.name!r} is missing; the file holds "
                f"{sorted(self.file.shapes)}. Fetch the file again, or check that it is of the format its "
                "folder says."
            )
        return stored

    def _refuse(self, name: str, expected: str) -> None:
        stored = self.layout[name].name
        raise BadFile(
            f"{self.origin}: tensor {stored!r} has shape {list(self.file.shapes[stored])}, expected "
            f"{expected}. Fetch the file again, or check that it is of the format its folder says."
        )

    def _turned_shape(self, name: str) -> tuple[int, ...]:
        stored = self.layout[name]
        shape = self.file.shapes[stored.name]
        return shape[::-1] if stored.transposed else shape

    @property
    def stamp(self) -> str:
        """The file with its size and time of change, and how `W_dec` is stored in it."""
        path = self.file.path.resolve()
        try:
            state = path.stat()
        except OSError:
            return ""
        return f"{path} {state.st_size} {state.st_mtime_ns} {self.layout['W_dec']}"

    def read(self, name: str) -> Tensor:
        """One tensor, rows features, float32. Raises BadFile when it is missing or cannot be read."""
        return self._turned(name, self.file.read(self._stored(name).name))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Features `start` to `stop` - 1 of a tensor, as `read` gives them. Raises BadFile as it does."""
        stored = self._stored(name)
        return self._turned(name, self.file.read_range(stored.name, 1 if stored.transposed else 0, start, stop))

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        stored = self.layout[name]
        tensor = tensor.T if stored.transposed else tensor
        return tensor if stored.times == 1.0 else tensor * stored.times

    def vector(self, name: str) -> Tensor:
        """A number for each feature, checked to be finite: [n_features].

        Raises:
            BadFile: when it cannot be read or is not finite.
        """
        tensor = self.read(name)
        check_values(tensor, self.layout[name].name, self.origin)
        return tensor


def refused(why: str) -> Callable[[], Activation]:
    """An activation that is not known: what encodes is refused with `why`, directions and their matches are not."""

    def activation() -> Activation:
        raise UnsupportedFormat(why)

    return activation
