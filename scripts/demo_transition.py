"""Update the tables and pictures of docs/transition.md from a results folder.

    saeflow transition demo --tokens 20000 --out FOLDER
    python scripts/demo_transition.py FOLDER

The text between the tables is written by hand: reread it when a number has changed.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from saeflow.experiments.results import Results

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "transition.md"
ALL = "all pairs"
BASELINES = ("affine map of h", "reconstruction", "least squares", "identity", "source reconstruction", "mean")
MATCHED = [
    ("cosine top-1", "raw"),
    *((f"permutation{more}", how) for more in ("", " + encoder", " + encoder + b_enc") for how in ("raw", "folded")),
]
SKIPPED = (
    *BASELINES[:5],
    "top-2 W_dec W_dec, values",
    "cosine top-1",
    "permutation",
    "cosine top-1, applied folded",
    "permutation, applied folded",
    "permutation + encoder + b_enc",
    "all W_dec W_enc, values",
    "mean",
)

Row = dict[str, Any]


def main() -> None:
    folder = Path(sys.argv[1])
    tables = {
        name: [row for row in table.dicts() if row["pair"] == ALL]
        for name, table in Results.open(folder).tables().items()
    }
    permutations, products = tables["transition_permutations"], tables["transition_top_k"]
    text = PAGE.read_text(encoding="utf-8")
    for header, rows in (
        ("| | raw | folded | mean activation |", _matched(permutations)),
        ("| baseline | explained variance |", _baselines(permutations)),
        ("| | raw | folded | raw, with a factor |", _products(products)),
        ("| in place of the layer | loss added |", _skipped(tables["transition_loss"])),
    ):
        text = _with_rows(text, header, rows)
    PAGE.write_text(text, encoding="utf-8")
    for name in ("permutations", "top_k", "loss"):
        picture = folder / "figures" / f"transition_{name}-all-pairs.svg"
        shutil.copy(picture, DOCS / "images" / f"demo-transition-{name.replace('_', '-')}.svg")


def _matched(rows: list[Row]) -> Iterable[str]:
    for method, how in MATCHED:
        cells = [
            _interval(_one(rows, method=method, matched=how, applied=applied), "ev", 3)
            for applied in ("raw", "folded", "mean activation")
        ]
        yield f"| {method if 'cosine' in method else f'{method}, matched {how}'} | {' | '.join(cells)} |"


def _baselines(rows: list[Row]) -> Iterable[str]:
    for name in BASELINES:
        yield f"| {name} | {_interval(_one(rows, kind='baseline', method=name), 'ev', 3)} |"


def _products(rows: list[Row]) -> Iterable[str]:
    for product in ("W_dec W_dec", "W_dec W_enc"):
        for entries in ("values", "binary"):
            for k in ("1", "2", "5"):
                found = [
                    _one(rows, weights=product, entries=entries, k=k, matched="raw", applied=applied)
                    for applied in ("raw", "folded")
                ]
                cells = [*(_interval(row, "ev", 3) for row in found), _number(found[0]["scaled"], 3)]
                yield f"| {product}, top-{k}, {entries} | {' | '.join(cells)} |"


def _skipped(rows: list[Row]) -> Iterable[str]:
    for name in SKIPPED:
        yield f"| {name} | {_interval(_one(rows, map=name), 'change', 2)} |"


def _one(rows: list[Row], **keys: str) -> Row:
    (found,) = [row for row in rows if all(str(row[key]) == value for key, value in keys.items())]
    return found


def _interval(row: Row, name: str, digits: int) -> str:
    number: Callable[[float], str] = lambda value: _number(value, digits)  # noqa: E731
    return f"{number(row[name])} ({number(row['low'])} to {number(row['high'])})"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _with_rows(text: str, header: str, rows: Iterable[str]) -> str:
    """Replace the rows of the table under `header`."""
    start = text.index(header)
    rule_end = text.index("\n", text.index("\n", start) + 1)
    end = text.index("\n\n", rule_end)
    return text[: rule_end + 1] + "\n".join(rows) + text[end:]


if __name__ == "__main__":
    main()
