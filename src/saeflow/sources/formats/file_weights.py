"""FileWeights: where a file keeps the tensors of one SAE, and those tensors turned so that rows are features.

Between a file of named tensors and a Dictionary: each reader says in a `layout` what its format calls a
tensor and which way round it lies, and this does the turning. Shapes are checked from headers when a
dictionary is opened, values when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from saeflow.errors import BadFile, UnsupportedFormat
from saeflow.sources.activations import Activation
from saeflow.sources.formats.tensors import ReadsRange, TensorFile
from saeflow.sources.weights import check_values, expected_shapes


@dataclass(frozen=True)
class Stored:
    """Where a file keeps a tensor: its name, whether features are its columns, and what to multiply it by."""

    name: str
    transposed: bool = False
    times: float = 1.0


@dataclass(frozen=True)
class FileWeights:
    """The tensors of one SAE in one file, turned so that rows are features. Meets `Weights`.

    `layout` says for W_enc, b_enc, W_dec, b_dec and, where there is one, W_skip how the file stores it. Every
    other name in it (threshold, r_mag) is a vector with a number for each feature.

    Attributes:
        file: the file.
        layout: name -> where it is.
        transcoder: whether `W_enc` may be of another width than `W_dec`.
    """

    file: TensorFile
    layout: Mapping[str, Stored]
    transcoder: bool = False

    def __post_init__(self) -> None:
        """Check that W_dec is there, and every other tensor that is has a shape that goes with it; reads headers only.

        Of a transcoder W_enc must be there too, which tells its width. Any other that is missing is named when it is
        read: directions need W_dec alone.

        Raises:
            BadFile: naming the file, the tensor, and the shape expected and found.
        """
        for name in ("W_dec", *(("W_enc",) if self.transcoder else ())):
            if len(self.file.shapes[self._there(name).name]) != 2:
                self._refuse(name, "two axes: features and what they read or write")
        expected = expected_shapes(*self.shape, self.d_out)
        for name in (name for name in self.layout if self.layout[name].name in self.file.shapes):
            wanted = expected.get(name, self.shape[:1])
            if self._turned_shape(name) != wanted:
                want = wanted[::-1] if self.layout[name].transposed else wanted
                self._refuse(name, f"{list(want)} beside W_dec")

    def _there(self, name: str) -> Stored:
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
    def origin(self) -> str:
        """The file."""
        return str(self.file.path)

    @property
    def stamp(self) -> str:
        """The file with its size and time of change, and how `W_dec` is stored in it."""
        path = self.file.path.resolve()
        try:
            state = path.stat()
        except OSError:
            return ""
        return f"{path} {state.st_size} {state.st_mtime_ns} {self.layout['W_dec']}"

    @property
    def shape(self) -> tuple[int, int]:
        """(n_features, d_in), from the header of W_dec; a transcoder's d_in from that of W_enc."""
        n_features, d_out = self._turned_shape("W_dec")
        return n_features, self._turned_shape("W_enc")[1] if self.transcoder else d_out

    @property
    def d_out(self) -> int:
        """The width of a row of W_dec, from its header."""
        return self._turned_shape("W_dec")[1]

    @property
    def has_skip(self) -> bool:
        """Whether the file has a linear skip."""
        return "W_skip" in self.layout

    def read(self, name: str) -> Tensor:
        """One tensor, rows features, float32.

        Raises:
            BadFile: when it is missing or cannot be read.
        """
        stored = self._there(name)
        tensor = self.file.read(stored.name)
        tensor = tensor.T if stored.transposed else tensor
        return tensor if stored.times == 1.0 else tensor * stored.times

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Features `start` to `stop` - 1 of a tensor, as `read` gives them.

        Raises:
            BadFile: when they cannot be read.
        """
        stored = self._there(name)
        axis = 1 if stored.transposed else 0
        if isinstance(self.file, ReadsRange):
            tensor = self.file.read_range(stored.name, axis, start, stop)
        else:
            tensor = self.file.read(stored.name).narrow(axis, start, stop - start)
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

    def threshold(self) -> Tensor:
        """The thresholds, checked to be finite: [n_features].

        Raises:
            BadFile: when they cannot be read or are not finite.
        """
        return self.vector("threshold")


def refused(why: str) -> Callable[[], Activation]:
    """An activation that is not known: what encodes is refused with `why`, directions and their matches are not."""

    def activation() -> Activation:
        raise UnsupportedFormat(why)

    return activation
