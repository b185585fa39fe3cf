"""Find features by words, while they are typed, among millions of labels. No torch.

    search(folder, "physics forc")  ->  features whose label or tokens hold "physics" and a word that begins with "forc"

An index (SQLite, FTS5) is built next to the words at the first search, and again when they change. Features are
numbered by the length of their labels, so the first matches of a query have the shortest labels, and reading a few
hundred of them is enough to rank. Whole words come before prefixes, the label before the tokens, words in the typed
order before others, short labels before long ones. If no feature has all words, those with most of them are found.

A query never reaches SQLite as syntax: it is first cut into words of letters and digits, lower case, without accents,
and the texts of the index were cut in the same way.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import re
import sqlite3
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from saeflow.errors import InvalidArgument, NoSpace
from saeflow.files import atomic_file, cache_folder, pack_folder, pack_names, write_error
from saeflow.ids import FeatureId, Part, Site
from saeflow.labels.words import WordsFolder, words_path, words_sites
from saeflow.plain_types import Progress

INDEX: Final = "search.sqlite"
VERSION: Final = 3

CANDIDATES: Final = 250
"""Maximum matches that are read and ranked."""

MOST_WORDS: Final = 16
"""Maximum words of a query; further ones are ignored."""

_INDEXED: Final = 3  # prefixes of up to this many letters are in the index as words themselves
_MOST_ENDINGS: Final = 256

_SUM_AT: Final = 68  # the application id in the header of an SQLite file; holds the checksum of the rest
_SUM: Final = struct.Struct(">I")
_PAGES: Final = struct.Struct(">16xH10xI")  # page size in bytes (1: 65,536) and number of pages
_CHECKED: Final[set[tuple[str, int, int]]] = set()

_NONE: Final = "\ue000"
_WORD: Final = re.compile(r"[^\W_]+")
_SCHEMA: Final = """
CREATE TABLE about (version INTEGER, fingerprint TEXT);
CREATE TABLE features (
    id INTEGER PRIMARY KEY, layer INTEGER, part TEXT, row INTEGER, label TEXT, tokens TEXT, frequency REAL
);
CREATE TABLE vocabulary (word TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE texts USING fts5(
    text, content='', columnsize=0, detail=none, prefix='1 2 3', tokenize="unicode61 categories 'L* M* N* Co'"
);
"""
_MATCHES: Final = "SELECT rowid FROM texts WHERE texts MATCH ? LIMIT ?"
_FEATURES: Final = "SELECT id, layer, part, row, label, tokens, frequency FROM features WHERE id IN ({})"

_Row: TypeAlias = tuple[int, str, int, str, str, float | None]
"""Layer, part, row, label, tokens as JSON, frequency."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A feature that was found, with what a list of results shows about it."""

    feature: FeatureId
    label: str
    tokens: tuple[str, ...]
    frequency: float | None


def search(
    folder: Path,
    query: str,
    limit: int = 20,
    *,
    sites: Collection[Site] | None = None,
    progress: Progress | None = None,
) -> list[Hit]:
    """The features of a folder of words that fit a query best, best first.

    Every word of the query must be in the label or the tokens of a feature; the last word may be a prefix. If no
    feature has them all, features with some are returned, those with most first.

    Args:
        folder: a folder of words.
        query: anything; punctuation does not matter.
        limit: maximum number of features.
        sites: only features of these sites.
        progress: called with (sites done, sites in all, site) while the index is built.

    Raises:
        InvalidArgument: for a limit below 1.
        BadFile: when the words cannot be read.
        OSError: when the index can be written neither next to the words nor in saeflow's cache.
    """
    if limit < 1:
        raise InvalidArgument(f"limit = {limit} features. Give 1 or more.")
    asked = words_in(query)[:MOST_WORDS]
    if not asked:
        return []
    path = build_index(folder, progress=progress)
    # restricts a search to some sites; empty for all
    within = "" if sites is None else f" AND ({' OR '.join(_quoted(_mark(site)) for site in sites) or _quoted(_NONE)})"
    with closing(_open(path)) as database:
        # 1. features with all words: first those with the last word whole, then those with it as a prefix
        ids = _ids(database, f"{' AND '.join(map(_quoted, asked))}{within}")
        if len(ids) < CANDIDATES:
            every = [*map(_quoted, asked[:-1]), _beginning(database, asked[-1])]
            ids = list(dict.fromkeys([*ids, *_ids(database, f"{' AND '.join(every)}{within}")]))

        # 2. else features with some of the words, each whole or as a prefix; those with most first
        if not ids:
            some = (_ids(database, f"{_beginning(database, word)}{within}") for word in dict.fromkeys(asked))
            counts = Counter(itertools.chain.from_iterable(some))
            ids = [one for one, _ in sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:CANDIDATES]]
        query = _FEATURES.format(", ".join("?" * len(ids)))
        known = {row[0]: row[1:] for row in database.execute(query, ids)}

    # 3. rank them
    found: list[_Row] = [known[one] for one in ids]
    ranked = sorted((*_rank(row, asked), place) for place, row in enumerate(found))
    hits: list[Hit] = []
    for *_, place in ranked[:limit]:
        layer, part, row, label, tokens, frequency = found[place]
        hits.append(Hit(FeatureId(Site(layer, Part(part)), row), label, tuple(json.loads(tokens)), frequency))
    return hits


def build_index(folder: Path, *, progress: Progress | None = None) -> Path:
    """The file of the index of a folder of words, built if it is missing or the words have changed.

    It lies next to the words, or in saeflow's cache if that folder cannot be written or came with saeflow.

    Raises:
        BadFile: when the words cannot be read.
        OSError: when it cannot be written.
    """
    # 1. a fingerprint that changes when a file of words is added, removed or written again
    stats = [(str(site), words_path(folder, site).stat()) for site in words_sites(folder)]
    stamps = [(site, found.st_size, found.st_mtime_ns) for site, found in stats]
    fingerprint = hashlib.sha256(json.dumps([VERSION, stamps]).encode()).hexdigest()

    # 2. where the index may be
    whole = folder.absolute().resolve()
    apart = cache_folder() / "search" / f"{hashlib.sha256(str(whole).encode()).hexdigest()[:16]}.sqlite"
    packs = [pack.resolve() for pack in map(pack_folder, pack_names()) if pack]
    places = (apart,) if any(map(whole.is_relative_to, packs)) else (folder / INDEX, apart)
    for path in places:
        if _is_current(path, fingerprint):
            return path
    for path in places[:-1]:
        with suppress(PermissionError, NoSpace):
            _build(folder, path, fingerprint, progress)
            return path
    _build(folder, places[-1], fingerprint, progress)
    return places[-1]


def words_in(text: str) -> list[str]:
    """The words of a text as the index holds them: letters and digits, lower case, without accents."""
    if text.isascii():
        return _WORD.findall(text.lower())
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(char for char in plain if not unicodedata.combining(char)))


def _open(path: Path) -> sqlite3.Connection:
    """Open the index for reading; it is never changed in place, only replaced."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _is_current(path: Path, fingerprint: str) -> bool:
    """Whether an index is of these words and still has its checksum, which is compared once per process."""
    if not path.is_file():
        return False
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _CHECKED:
        with path.open("rb") as file:
            head = file.read(_PAGES.size)
            if len(head) < _PAGES.size:
                return False
            page, pages = _PAGES.unpack(head)
            if stat.st_size != (page if page > 1 else 1 << 16) * pages:  # before a longer file is read whole
                return False
            file.seek(_SUM_AT)
            if file.read(_SUM.size) != _SUM.pack(_file_sum(path)):
                return False
        _CHECKED.add(key)
    try:
        with closing(_open(path)) as database:
            return database.execute("SELECT version, fingerprint FROM about").fetchone() == (VERSION, fingerprint)
    except sqlite3.Error:
        return False


def _file_sum(path: Path) -> int:
    """A CRC-32 of the whole file except the bytes that hold it."""
    with path.open("rb") as file:
        found = zlib.crc32(file.read(_SUM_AT))
        file.seek(_SUM_AT + _SUM.size)
        while piece := file.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found


def _build(folder: Path, path: Path, fingerprint: str, progress: Progress | None) -> None:
    with atomic_file(path) as part:
        try:
            _write(part, folder, fingerprint, progress)
        except sqlite3.OperationalError as error:
            # SQLite reports a full disk only in the text of its error
            raise write_error(error, part) or OSError(errno.EIO, f"SQLite: {error}", str(part)) from error
        checksum = _SUM.pack(_file_sum(part))
        with part.open("r+b") as file:
            file.seek(_SUM_AT)
            file.write(checksum)


def _write(part: Path, folder: Path, fingerprint: str, progress: Progress | None) -> None:
    with closing(sqlite3.connect(part)) as database:
        # no journal: nothing reads the file before it is complete, and an incomplete one is discarded
        database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
        database.executescript(_SCHEMA)
        database.execute("CREATE TEMP TABLE read (length INTEGER, layer, part, row, label, tokens, frequency, text)")
        vocabulary: set[str] = set()
        entries = _entries(folder, vocabulary, progress)
        database.executemany("INSERT INTO read VALUES (?, ?, ?, ?, ?, ?, ?, ?)", entries)
        database.executemany("INSERT INTO vocabulary VALUES (?)", ((word,) for word in sorted(vocabulary)))
        # short labels first; features without a label last
        order = "ORDER BY length, rowid"
        columns = "layer, part, row, label, tokens, frequency"
        database.execute(f"INSERT INTO features SELECT NULL, {columns} FROM read {order}")  # noqa: S608 - constants
        numbered = f"SELECT row_number() OVER ({order}), text FROM read {order}"  # noqa: S608 - constants
        database.execute(f"INSERT INTO texts (rowid, text) {numbered}")
        database.execute("INSERT INTO texts (texts) VALUES ('optimize')")
        database.execute("INSERT INTO about VALUES (?, ?)", (VERSION, fingerprint))
        database.commit()


def _entries(folder: Path, vocabulary: set[str], progress: Progress | None) -> Iterator[tuple[object, ...]]:
    """A row of the table `read` for each feature with words; its words are added to the vocabulary."""
    sites = words_sites(folder)
    for done, site in enumerate(sites):
        if progress:
            progress(done, len(sites), str(site))
        for row, known in enumerate(WordsFolder(folder).site(site)):
            if known is not None:
                label = words_in(known.label)
                words = dict.fromkeys([*label, *(word for token in known.tokens for word in words_in(token))])
                vocabulary.update(words)
                tokens = json.dumps(known.tokens, ensure_ascii=False)
                shown = (site.layer, site.part.value, row, known.label, tokens, known.frequency)
                yield (len(label) or 1_000_000, *shown, " ".join([_mark(site), *words]))


def _mark(site: Site) -> str:
    """A word that stands for a site, with a private-use character that no query holds."""
    return f"\ue000{site.layer}{site.part.value}"


def _quoted(word: str) -> str:
    return f'"{word}"'


def _beginning(database: sqlite3.Connection, word: str) -> str:
    """An expression that finds every word with this prefix.

    SQLite collects all features of all such words before it gives the first, unless the prefix is short enough to be in
    the index itself. Given the words one by one, it steps through them instead.
    """
    if len(word) <= _INDEXED:
        return f"{_quoted(word)}*"
    query = "SELECT word FROM vocabulary WHERE word >= ? AND word < ? LIMIT ?"
    found = [row[0] for row in database.execute(query, (word, f"{word}\U0010ffff", _MOST_ENDINGS + 1))]
    if len(found) > _MOST_ENDINGS:
        return f"{_quoted(word)}*"
    return f"({' OR '.join(map(_quoted, found or [word]))})"


def _ids(database: sqlite3.Connection, expression: str) -> list[int]:
    try:
        return [row[0] for row in database.execute(_MATCHES, (expression, CANDIDATES))]
    except sqlite3.OperationalError:
        # SQLite cuts a word of some script into two, and without word positions (detail=none) cannot search for both.
        return []


def _rank(row: _Row, asked: Sequence[str]) -> tuple[int, int, int, int, int, int]:
    """Smaller is better: missing words, prefixes, words only in the tokens, order, place in the label, length.

    A label made of tokens begins with the strongest; a label in words, with what matters most.
    """
    label, tokens = words_in(row[3]), words_in(row[4])
    missing = beginnings = elsewhere = 0
    places: list[int] = []
    for word in asked:
        if word in label:
            places.append(label.index(word))
        elif any(one.startswith(word) for one in label):
            beginnings += 1
            places.append(next(place for place, one in enumerate(label) if one.startswith(word)))
        elif any(one.startswith(word) for one in tokens):
            elsewhere += 1
            beginnings += word not in tokens
        else:
            missing += 1
    out_of_order = sum(after != before + 1 for before, after in itertools.pairwise(places))
    return missing, beginnings, elsewhere, out_of_order, min(places, default=len(label)), len(label)
