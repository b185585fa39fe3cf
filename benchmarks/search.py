"""Searching labels while typing, against scanning every label and against SQLite's own ranking.

    python benchmarks/search.py [--json] [--quick] [--features 1277952]

Uses 1,277,952 features, as Gemma Scope 2B has at width 16,384, with synthetic labels: 3 to 12 words from a vocabulary
of 30,000 with frequencies proportional to 1 / rank (so that "references" and "the" of real labels have counterparts),
and ten tokens each. Words of various frequencies are typed letter by letter. As on the command line, a search opens the
index, checks that it belongs to the words, and ranks; the time of a query is that of its slowest prefix.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from _timing import Row, arguments, interleaved, show
from saeflow.ids import Part, Site
from saeflow.labels import FeatureWords, WordsFolder, write_words
from saeflow.labels.search import build_index, search

VOCABULARY = 30_000
WIDTH = 16_384
SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]


def vocabulary(rng: np.random.Generator) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < VOCABULARY:
        made["".join(rng.choice(SYLLABLES, rng.integers(2, 5)))] = None
    return list(made)


def write(folder: Path, n: int, words: list[str], rng: np.random.Generator) -> None:
    chance = 1 / np.arange(1, VOCABULARY + 1)
    chance /= chance.sum()
    for number in range(-(-n // WIDTH)):
        site = Site(number // 3, list(Part)[number % 3])
        rows = min(WIDTH, n - number * WIDTH)
        drawn = rng.choice(VOCABULARY, (rows, 22), p=chance)
        length = rng.integers(3, 13, rows)
        lines = zip(drawn.tolist(), length.tolist(), strict=True)
        write_words(folder, site, (made(words, line, k) for line, k in lines))


def made(words: list[str], drawn: list[int], length: int) -> FeatureWords:
    label = " ".join(words[i] for i in drawn[:length])
    return FeatureWords(label, tuple(f" {words[i]}" for i in drawn[12:]), frequency=0.01)


def typed(words: list[str]) -> dict[str, list[str]]:
    """Queries by name, each as a list with every prefix of its last word."""
    asked = {
        "the commonest word": (words[0],),
        "a common and a rare word": (words[3], words[900]),
        "two rare words": (words[2_000], words[5_000]),
        "three common words": (words[1], words[2], words[5]),
        "words that never meet": (words[29_000], words[28_000]),
    }
    return {
        name: [" ".join([*first, last[:k]]) for k in range(1, len(last) + 1)] for name, (*first, last) in asked.items()
    }


def by_reading(labels: list[str], query: str) -> list[int]:
    """The simplest implementation: regular expressions on every label."""
    *whole, last = query.split()
    patterns = [re.compile(rf"\b{word}\b") for word in whole] + [re.compile(rf"\b{last}")]
    return [place for place, label in enumerate(labels) if all(p.search(label) for p in patterns)][:20]


def by_rank(path: Path, query: str) -> list[int]:
    """Plain FTS5, ordered by its bm25."""
    *whole, last = query.split()
    expression = " AND ".join([*(f'"{word}"' for word in whole), f'"{last}"*'])
    with closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT rowid FROM plain WHERE plain MATCH ? ORDER BY rank LIMIT 20", (expression,))
        return [row[0] for row in found]


def plain_index(folder: Path, path: Path) -> list[str]:
    labels: list[str] = []
    with closing(sqlite3.connect(path)) as database:
        database.executescript("PRAGMA synchronous=OFF; CREATE VIRTUAL TABLE plain USING fts5(text);")
        for site in WordsFolder(folder).sites:
            rows = [row for row in WordsFolder(folder).site(site) if row is not None]
            labels += [row.label for row in rows]
            database.executemany(
                "INSERT INTO plain VALUES (?)", [(f"{row.label} {' '.join(row.tokens)}",) for row in rows]
            )
        database.commit()
    return labels


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--features", type=int, default=78 * WIDTH)
    parser.add_argument("--repeats", type=int, default=5)
    told = parser.parse_args()
    n, repeats = (40_000, 2) if told.quick else (told.features, told.repeats)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder, plain = Path(name) / "words", Path(name) / "plain.sqlite"
        words = vocabulary(rng)
        write(folder, n, words, rng)
        start = time.perf_counter()
        index = build_index(folder)
        built = time.perf_counter() - start
        labels = plain_index(folder, plain)
        rows: list[Row] = []
        worst = 0.0
        for query, prefixes in typed(words).items():
            seconds = {
                "saeflow": max(interleaved({q: lambda q=q: search(folder, q) for q in prefixes}, repeats).values()),
                "FTS5 ordered by bm25": max(
                    interleaved({q: lambda q=q: by_rank(plain, q) for q in prefixes}, repeats).values()
                ),
                "a pattern over every label": interleaved({"": lambda q=prefixes[-1]: by_reading(labels, q)}, 1)[""],
            }
            worst = max(worst, seconds["saeflow"])
            rows += [Row(how, query, taken, taken / seconds["saeflow"], "saeflow") for how, taken in seconds.items()]
        show(
            rows,
            as_json=told.json,
            features=n,
            slowest_ms=1000 * worst,
            index_seconds=built,
            index_mb=index.stat().st_size / 1e6,
            words_mb=sum(p.stat().st_size for p in folder.glob("*.gz")) / 1e6,
        )


if __name__ == "__main__":
    main()
