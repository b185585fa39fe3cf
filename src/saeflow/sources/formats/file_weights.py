"""FileWeights: the tensors of one SAE, found in a file and transposed so that rows are features.

It stands between a file of named tensors and a Dictionary: each reader states in a `layout` what its format
calls a tensor and how it is oriented, and FileWeights transposes it. Shapes are checked from headers when a
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
    """How a file stores a tensor: its name, whether features are its columns, and the factor to multiply it by."""

    name: str
    transposed: bool = False
    times: float = 1.0


class FileWeights(Weights):
    """The tensors of one SAE in one file, transposed so that rows are features.

    `layout` states how the file stores W_enc, b_enc, W_dec, b_dec and, where there is one, W_skip. Every other
    name in it (threshold, r_mag) is a vector with one number per feature.
    """

    def __init__(self, file: TensorFile, layout: Mapping[str, Stored], *, transcoder: bool = False) -> None:
        """Check that W_dec is present and that the shapes of all tensors present fit it; reads headers only.

        A transcoder needs W_enc too, whose width may differ from that of W_dec. Any other missing tensor raises an
        error only when it is read, since directions need only W_dec.

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
        """The file's path, size and modification time, and how it stores `W_dec`; "" for a file that is not there."""
        path = self.file.path.resolve()
        try:
            state = path.stat()
        except OSError:
            return ""
        return f"{path} {state.st_size} {state.st_mtime_ns} {self.layout['W_dec']}"

    def read(self, name: str) -> Tensor:
        """Read one tensor as float32, rows being features. Raises BadFile when it is missing or cannot be read."""
        return self._turned(name, self.file.read(self._stored(name).name))

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Read features `start` to `stop` - 1 of a tensor, as `read` returns them. Raises BadFile as `read` does."""
        stored = self._stored(name)
        return self._turned(name, self.file.read_range(stored.name, 1 if stored.transposed else 0, start, stop))

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        stored = self.layout[name]
        tensor = tensor.T if stored.transposed else tensor
        return tensor if stored.times == 1.0 else tensor * stored.times

    def vector(self, name: str) -> Tensor:
        """Read a vector with one number per feature, [n_features], and check that it is finite.

        Raises:
            BadFile: when it cannot be read or is not finite.
        """
        tensor = self.read(name)
        check_values(tensor, self.layout[name].name, self.origin)
        return tensor


def refused(why: str) -> Callable[[], Activation]:
    """Stand in for an unknown activation: encoding raises UnsupportedFormat(why); directions and matches still work."""

    def activation() -> Activation:
        raise UnsupportedFormat(why)

    return activation
