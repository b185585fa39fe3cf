"""Match features by the Pearson correlation of their activations over text (appendix C.4).

1. The model runs over the texts once, and what is active goes to disk (`stream`).
2. Each pair of sites is correlated from there, both directions at once (`coactivation`).
3. The tables make an atlas with the method "pearson", and the activations are removed.

Every file appears whole or not at all, and is bound to what it was made from, so a killed run resumes
where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from saeflow.errors import BadFile, InvalidArgument, UnknownSite
from saeflow.files import write_atomic
from saeflow.ids import Site
from saeflow.matching.atlas import MANIFEST, Atlas, Pair, flow_pairs, open_atlas, save_manifest, table_entry, table_file
from saeflow.matching.build import weights_of
from saeflow.matching.coactivation import Ranked, size, top_correlations
from saeflow.matching.methods import EdgeEnd, rows_of
from saeflow.matching.stream import Stream
from saeflow.matching.table import MatchTable
from saeflow.reading import read_json
from saeflow.records import Progress
from saeflow.sources.activity import encoder_digest, text_batches
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.model import LanguageModel
from saeflow.version import __version__

METHOD: Final = "pearson"
RUN: Final = "correlation.json"
_FORMAT: Final = "saeflow-correlation"
_SHARDS: Final = "activations"


def correlate(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    texts: Sequence[str],
    *,
    out: Path | str,
    k: int = 5,
    pairs: Sequence[Pair] | None = None,
    max_length: int | None = 256,
    max_tokens: int | None = None,
    texts_at_once: int = 8,
    sites_at_once: int | None = None,
    release: str = "",
    keep_activations: bool = False,
    progress: Progress | None = None,
) -> Atlas:
    """An atlas in the folder `out` whose scores are Pearson correlations over `texts`, in [-1, 1].

    Nothing is drawn at random: the same texts give the same atlas. The paper uses 100,000 tokens. Until the
    end an active feature of a token takes 8 bytes on disk; in memory, about 40 for the pair of sites in
    hand. A feature that never fires has no match: see `top_correlations` for what its row says.

    Args:
        model: The model the dictionaries were trained on.
        dictionaries: Dictionaries by site; a `DictionarySet` reads each when it is used.
        texts: What to run, in order.
        out: Folder of the atlas; a killed run resumes there.
        k: How many matches of each feature to keep.
        pairs: Ordered pairs of sites to match, each in both directions; those of a flow graph by default.
        max_length: Cut each text to this many tokens, the begin-of-text token included.
        max_tokens: Stop after this many tokens that are not special.
        texts_at_once: Texts in one forward pass and one shard.
        sites_at_once: How many dictionaries are in memory at a time, all by default; fewer take more passes
            over the texts.
        release: Name to write into the atlas.
        keep_activations: Leave them in `out`, for another `k`.
        progress: Called with (done, total, what is being done).

    Raises:
        UnknownSite: when a site of `pairs` has no dictionary, or no two sites are neighbours in the flow.
        InvalidArgument: for texts with fewer than two tokens, a number out of range, or a folder that
            holds other files.
        WidthMismatch: when a dictionary does not fit the model.
    """
    out = Path(out)
    _check(k, max_tokens, texts_at_once, sites_at_once)
    wanted = _pairs(dictionaries, pairs)
    _refuse_other_files(out)
    model = model.as_trained(dictionaries)
    batches = text_batches(model, texts, max_length=max_length, max_tokens=max_tokens, texts_at_once=texts_at_once)
    run = _Run(out, Stream(out / _SHARDS, list(batches), model, dictionaries), k)
    writers = run.begin(wanted, max_length)
    missing = [pair for pair in wanted if not run.is_done(pair)]
    sites = sorted({site for pair in missing for site in pair})
    run.stream.write(sites, sites_at_once or max(len(sites), 1), progress)
    for done, pair in enumerate(missing):
        if progress:
            progress(done, len(missing), f"{pair[0]} and {pair[1]}")
        run.match(pair, (writers[pair[0]], writers[pair[1]]))
    if progress:
        progress(len(missing), len(missing), "done")
    files = {pair: table_entry(out, *pair) for ab in wanted for pair in (ab, (ab[1], ab[0]))}
    weights = weights_of(dictionaries, writers)
    save_manifest(Atlas(out, release, model.name, k, f"saeflow {__version__}", files, METHOD, weights=weights))
    if not keep_activations:
        shutil.rmtree(out / _SHARDS, ignore_errors=True)
    return open_atlas(out)


@dataclass(frozen=True, eq=False)
class _Run:
    """One run over its texts: what is on disk, and what is still to be done."""

    out: Path
    stream: Stream
    k: int

    def begin(self, pairs: Sequence[Pair], max_length: int | None) -> dict[Site, str]:
        """State the run in `correlation.json`, drop what another run left; fingerprints of the decoders."""
        writers: dict[Site, str] = {}
        encoders: dict[str, str] = {}
        for site in sorted({site for pair in pairs for site in pair}):
            dictionary = self.stream.dictionaries[site]
            writers[site] = rows_of(dictionary, EdgeEnd.CHILD, projector=self.stream.model).fingerprint
            encoders[str(site)] = encoder_digest(dictionary, self.stream.model)
            dictionary.unload()
        stated = {
            "format": _FORMAT,
            "version": 1,
            "texts": self.stream.n_texts,
            "tokens": self.stream.n_tokens,
            "max_length": max_length,
            "model_and_tokens": self.stream.key,
            "encoders": encoders,
            "decoders": {str(site): writer for site, writer in writers.items()},
        }
        if _read(self.out / RUN) != stated:
            shutil.rmtree(self.out / _SHARDS, ignore_errors=True)
            for table in self.out.glob("*.safetensors"):
                table.unlink()
        write_atomic(self.out / RUN, (json.dumps(stated, indent=1) + "\n").encode())
        # Until the end nothing may vouch for tables that are being replaced.
        (self.out / MANIFEST).unlink(missing_ok=True)
        return writers

    def is_done(self, pair: Pair) -> bool:
        """Whether both tables of a pair are there, with this run's `k`."""
        try:
            found = [MatchTable.load(self._path(p)) for p in (pair, (pair[1], pair[0]))]
        except BadFile:
            return False
        return all(table.k == self.k and table.method == METHOD for table in found)

    def match(self, pair: Pair, writers: tuple[str, str]) -> None:
        """Correlate a pair of sites and write both of its tables."""
        x, y = (self.stream.read(site) for site in pair)
        forward, backward = top_correlations(x, y, self.k)
        back, made_from = (pair[1], pair[0]), (writers[1], writers[0])
        _table(forward, pair, size(y)[1], writers).save(self._path(pair))
        _table(backward, back, size(x)[1], made_from).save(self._path(back))

    def _path(self, pair: Pair) -> Path:
        return self.out / table_file(*pair)


def _table(found: Ranked, pair: Pair, n_target: int, made_from: tuple[str, str]) -> MatchTable:
    return MatchTable(*pair, METHOD, n_target, found.index, found.score, made_from)


def _pairs(dictionaries: Mapping[Site, Dictionary], pairs: Sequence[Pair] | None) -> list[Pair]:
    """The pairs to match; of a pair and its reverse, the first."""
    asked = flow_pairs(list(dictionaries)) if pairs is None else list(pairs)
    have = ", ".join(str(s) for s in sorted(dictionaries)) or "none"
    for site in (site for pair in asked for site in pair):
        if site not in dictionaries:
            raise UnknownSite(f"there is no dictionary at {site} to correlate. There are: {have}.")
    if not asked:
        raise UnknownSite(
            f"no residual site has a predecessor among the sites found ({have}). A flow needs two; or give pairs."
        )
    kept: dict[frozenset[Site], Pair] = {}
    for pair in asked:
        kept.setdefault(frozenset(pair), pair)
    return list(kept.values())


def _check(k: int, max_tokens: int | None, texts_at_once: int, sites_at_once: int | None) -> None:
    numbers = {"k": k, "max_tokens": max_tokens, "texts_at_once": texts_at_once, "sites_at_once": sites_at_once}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise InvalidArgument(f"{name}={number} is out of range. Give 1 or more.")


def _refuse_other_files(out: Path) -> None:
    """A folder is written into when it is empty, missing, or this method's."""
    if not (out / RUN).is_file() and out.is_dir() and any(out.iterdir()):
        raise InvalidArgument(f"{out} holds other files. Give an empty folder, or one of an earlier correlation.")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", read_json(path))
    except (OSError, ValueError):
        return None
