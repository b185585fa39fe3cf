"""Datasets by name, and the tokens an experiment looks at, as a function of a seed. No torch.

    name -> Dataset -> texts in an order set by the seed -> n texts with m random tokens each (appendix A.1)

A name is "demo" or "demo:stories", a file (.txt, .jsonl, .parquet), a name in datasets.toml or a dataset on the Hugging
Face hub. Every draw has its own generator, made from the seed and from what is drawn, so that adding datasets or texts
does not change the other samples. A quarter of all texts, chosen by a hash of their content, is never sampled: matching
by activations is fitted on them (`held_out`), so that no method has seen the texts it is tested on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from saeflow.demo.texts import DOMAINS, all_texts, domains
from saeflow.errors import BadFile, InvalidArgument, MissingExtra, Unreachable, nearest
from saeflow.reading import TEXTS, parse_json, read_text, read_toml, regular

HELD_OUT: Final = 4
"""One in this many texts is held out from sampling."""

BUFFER: Final = 10_000
"""The size of the shuffle buffer of a streamed dataset, in texts."""

_ROWS: Final = 256
"""How many texts of a Parquet file are read at a time."""

MAX_TRIED: Final = 1000
"""How many texts without enough tokens are skipped, before the first sample, until a dataset is given up."""

PYTHON: Final = ("demo:python", "python-github-code")
"""Names of the known datasets of Python code."""

_RECIPES: Final = Path(__file__).parent / "datasets.toml"
_HUB_DEFAULT: Final = {"config": "", "split": "train", "column": "text"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """A name, and a function that reads its texts in an order set by a seed."""

    name: str
    read: Callable[[int], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and the tokens drawn from it.

    Attributes:
        dataset: name of the dataset.
        text: number of the text among the samples of its dataset, from 0.
        content: the text.
        positions: positions of the drawn tokens, ascending; position 0 is the begin-of-text token, if there is one.
        left_out: how many tokens were excluded from the draw (massive positions), not counting special tokens.
    """

    dataset: str
    text: int
    content: str
    positions: tuple[int, ...]
    left_out: int = 0

    def to_row(self) -> dict[str, Any]:
        """The sample as a unit of work in a results folder."""
        row = {"dataset": self.dataset, "text": self.text, "content": self.content, "positions": list(self.positions)}
        return row | ({"left_out": self.left_out} if self.left_out else {})

    @staticmethod
    def of(row: dict[str, Any]) -> Sample:
        """The inverse of `to_row`."""
        return Sample(row["dataset"], row["text"], row["content"], tuple(row["positions"]), row.get("left_out", 0))


Encode = Callable[[str], Sequence[int]]
"""Returns the token ids of a text as the model sees it: truncated, with the begin-of-text token."""


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A generator for one draw, which depends only on the seed and on what is drawn."""
    digest = hashlib.sha256(json.dumps([seed, *what]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The names of single datasets, each once: "demo", or another pack, expands to its domains."""
    found = itertools.chain.from_iterable([f"{name}:{one}" for one in domains(name)] or [name] for name in names)
    return tuple(dict.fromkeys(found))


def open_dataset(name: str) -> Dataset:
    """The dataset with a name, not yet read.

    Args:
        name: "demo:stories", a path that ends in .txt, .jsonl or .parquet, a name in `recipes()`, or
            OWNER/NAME of a dataset on the hub.

    Raises:
        InvalidArgument: for a name that is none of these, or a file that does not exist.
    """
    kind, _, domain = name.partition(":")
    if domain and domain in domains(kind):
        return Dataset(name, partial(_shuffled, name, partial(all_texts, domain, kind)))
    path = Path(name).expanduser()
    if path.suffix in _READERS:
        if not path.is_file():
            raise InvalidArgument(f"there is no file {path}. Give a .txt, .jsonl or .parquet file that exists.")
        # an absolute path, since worker processes may run in another folder
        return Dataset(name, partial(_shuffled, name, partial(_READERS[path.suffix], path.absolute())))
    known = recipes()
    if name in known:
        return Dataset(name, partial(_streamed, known[name]))
    if name.count("/") == 1 and not path.exists():
        return Dataset(name, partial(_streamed, {"repo": name, **_HUB_DEFAULT}))
    names = ["demo", *(f"demo:{domain}" for domain in DOMAINS), *known]
    raise InvalidArgument(
        f"there is no dataset {name!r}.{nearest(name, names)} Known: {', '.join(names)}; or "
        "give a .txt, .jsonl or .parquet file, or OWNER/NAME of a dataset on the hub."
    )


def recipes() -> dict[str, dict[str, str]]:
    """The named datasets on the hub: name -> repo, config, split, column, about."""
    return read_toml(_RECIPES)


def is_held_out(text: str) -> bool:
    """Whether a text is excluded from sampling and reserved for methods that are fitted on activations."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % HELD_OUT == 0


def held_out(datasets: Sequence[Dataset], n: int, seed: int = 0) -> list[str]:
    """Up to `n` held-out texts of each dataset, one of each in turn."""
    kept = [list(itertools.islice(filter(is_held_out, dataset.read(seed)), n)) for dataset in datasets]
    return [text for turn in itertools.zip_longest(*kept) for text in turn if text is not None]


def read_texts(names: Iterable[str], n: int, seed: int = 0) -> list[str]:
    """Up to `n` non-empty texts of each named dataset.

    Raises:
        InvalidArgument, MissingExtra, BadFile, Unreachable: when a dataset cannot be read.
    """
    return [
        text for name in expand(names) for text in itertools.islice(filter(str.strip, open_dataset(name).read(seed)), n)
    ]


def draw(
    dataset: Dataset,
    encode: Encode,
    *,
    n_texts: int,
    n_tokens: int,
    seed: int = 0,
    special: Collection[int] = (),
    beside: Callable[[str], Collection[int]] = lambda _: (),
) -> list[Sample]:
    """Draw up to `n_texts` texts of a dataset with `n_tokens` random tokens each, none of them special.

    Texts with too few tokens are skipped. Fewer samples are returned if the dataset runs out.

    Args:
        dataset: what `open_dataset` returned.
        encode: returns the token ids of a text; positions are indices into them.
        n_texts: how many texts.
        n_tokens: how many tokens of each text, drawn without replacement.
        seed: with the dataset, determines the samples.
        special: token ids that are never drawn, above all the begin-of-text token.
        beside: returns positions of a text that are not drawn either, such as massive ones.

    Raises:
        InvalidArgument: for fewer than one text or token; when more than 1,000 texts have too few tokens before the
            first sample.
        MissingExtra: when the dataset needs a package that is not installed.
        BadFile: when its file cannot be read.
        Unreachable: when it cannot be fetched.
    """
    if n_texts < 1 or n_tokens < 1:
        raise InvalidArgument(f"{n_texts} texts with {n_tokens} tokens each give no sample. Give 1 or more of both.")
    left_out, passed, found = set(special), 0, list[Sample]()
    for content in dataset.read(seed):
        if is_held_out(content):
            continue
        columns = [column for column, token in enumerate(encode(content)) if token not in left_out]
        n_text, not_drawn = len(columns), beside(content) if len(columns) >= n_tokens else ()
        columns = [column for column in columns if column not in not_drawn]
        if len(columns) < n_tokens:
            passed += 1
            if passed > MAX_TRIED and not found:
                raise InvalidArgument(
                    f"{passed} texts of {dataset.name} in a row have fewer than {n_tokens} tokens. Give fewer --tokens."
                )
            continue
        chosen = generator(seed, "tokens", dataset.name, content).choice(columns, n_tokens, replace=False)
        positions = tuple(sorted(chosen.tolist()))
        found.append(Sample(dataset.name, len(found), content, positions, n_text - len(columns)))
        if len(found) == n_texts:
            break
    return found


def _shuffled(name: str, read: Callable[[], list[str]], seed: int) -> Iterator[str]:
    texts = read()
    for index in generator(seed, "texts", name).permutation(len(texts)).tolist():
        yield texts[index]


def _streamed(recipe: dict[str, str], seed: int) -> Iterator[str]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(
            f"the dataset {recipe['repo']} is read with the package datasets, which is not installed.",
            "data",
            ", or give a local file",
        ) from None
    from saeflow.sources.remote.hub_file import reachable

    try:
        stream = datasets.load_dataset(
            reachable(recipe["repo"]), recipe["config"] or None, split=recipe["split"], streaming=True
        )
        for row in stream.shuffle(seed=seed, buffer_size=BUFFER):
            yield str(row[recipe["column"]])
    except KeyError:
        raise BadFile(
            f"{recipe['repo']} has no column {recipe['column']!r}. Give a local file with one named text."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise Unreachable(
            f"{recipe['repo']} cannot be read ({type(error).__name__}: {error}). Check its name and the network, or "
            "give a local file."
        ) from error


def _text_file(path: Path) -> list[str]:
    """Texts separated by blank lines, or by `<|endoftext|>` if the file contains it."""
    whole = _read_text(path)
    pieces = whole.split("<|endoftext|>" if "<|endoftext|>" in whole else "\n\n")
    return [piece.strip() for piece in pieces if piece.strip()]


def _json_lines(path: Path) -> list[str]:
    try:
        rows = [parse_json(line) for line in _read_text(path).split("\n") if line.strip()]
        return [str(row["text"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} is not a JSON object with a field text on each line ({error!r}).") from None


def _parquet(path: Path) -> list[str]:
    try:
        import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra(
            f"{path} is read with the package pyarrow, which is not installed.", "data", ", or give a .jsonl file"
        ) from None
    try:
        regular(path)
        texts, left = list[str](), TEXTS
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, columns=["text"]):
                for value in batch["text"]:  # one by one: in a dictionary-encoded column a small file may expand a lot
                    texts.append(value.as_py())
                    left -= len(texts[-1])
                    if left < 0:
                        raise ValueError(f"its texts have more than {TEXTS:,} characters")
        return texts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{path} is no Parquet file with a column text ({error}).") from None


def _read_text(path: Path) -> str:
    try:
        return read_text(path, TEXTS)
    except (OSError, ValueError) as error:
        raise BadFile(f"{path} cannot be read as UTF-8 text ({error}).") from None


_READERS: Final[dict[str, Callable[[Path], list[str]]]] = {
    ".txt": _text_file,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
