"""Transfer labels from one release to unlabelled features of another whose decoder rows agree.

Two features with one decoder direction write the same thing. So a label is transferred only if the cosine is high and,
by default, each feature is the other's best match. The label names its origin: `by` of the words is `RELEASE 4/res/17,
cosine 0.953`. Tokens, passages and frequencies are not transferred, since they were measured on the other feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saeflow.errors import InvalidArgument
from saeflow.ids import FeatureId, Site
from saeflow.labels.folders import TRANSFERRED, read_about, words_for, write_about
from saeflow.labels.words import FeatureWords, Words, write_words
from saeflow.matching.methods import match_pair
from saeflow.matching.table import mutual as mutual_matches
from saeflow.plain_types import Progress
from saeflow.sources.dictionary import AttentionWriter, Dictionary


@dataclass(frozen=True, slots=True)
class TransferredLabel:
    """A transferred label: the feature that gets it, the feature it is from, and the cosine of their decoder rows."""

    feature: FeatureId
    label: str
    source: FeatureId
    cosine: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """All transferred labels, and how many features had none before."""

    labels: tuple[TransferredLabel, ...]
    unlabelled: int


def transfer_labels(
    source: Mapping[Site, Dictionary],
    target: Mapping[Site, Dictionary],
    pairs: Sequence[tuple[Site, Site]],
    *,
    release: str,
    target_release: str = "",
    least: float = 0.9,
    mutual: bool = True,
    words: Words | None = None,
    known: Words | None = None,
    projector: AttentionWriter | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Transfer labels from `source` to features of `target` that have none.

    Args:
        source: Dictionaries whose features are labelled.
        target: Dictionaries of the same model.
        pairs: Pairs (site of the source, site of the target), each target once.
        release: Name of the source: its words are read, and labels cite it.
        target_release: Name of the target, whose words show which features have no label.
        least: Minimum cosine of the decoder rows.
        mutual: Whether both have to be each other's best match.
        words: Words of the source, in place of those on this machine.
        known: Words of the target, in place of those on this machine.
        projector: The model, needed for dictionaries that live in z.
        out: Folder to write words to; None writes nothing.
        progress: Called with (pairs done, pairs in all, the next pair).

    Raises:
        InvalidArgument: for a cosine out of range, a repeated target site, or a source without labels.
        UnknownSite: when a site has no dictionary.
        WidthMismatch: when two dictionaries do not write into one stream.
        OSError: when the folder cannot be written.
    """
    if not 0.0 < least <= 1.0:
        raise InvalidArgument(f"least={least} is no cosine that labels could go over at. Give one above 0, up to 1.")
    if len({site for _, site in pairs}) < len(pairs):
        raise InvalidArgument("a site of the target is in two pairs. Pair each with one site of the source.")
    words = words_for(release) if words is None else words
    known = words_for(target_release) if known is None else known
    labels, unlabelled = list[TransferredLabel](), 0
    for done, (here, there) in enumerate(pairs):
        if progress:
            progress(done, len(pairs), f"{here} to {there}")
        # 1. labels of the source, and features of the target without one
        given, had = words.site(here), known.site(there)
        if not any(row is not None and row.label for row in given):
            raise InvalidArgument(
                f"no feature of {release} at {here} has a label on this machine. Fetch or make its words first: "
                f"`saeflow labels fetch {release}`."
            )
        n = target[there].n_features
        bare = [row for row in range(n) if row >= len(had) or not (own := had[row]) or not own.label]
        # 2. the best match of each of these at the source
        back, table = match_pair(source[here], target[there], projector=projector)
        both = mutual_matches(table, back)[:, 0]
        rows: list[FeatureWords | None] = [None] * n
        for row in bare:
            index, cosine = int(table.index[row, 0]), float(table.score[row, 0])
            found = given[index] if index < len(given) else None
            if cosine < least or (mutual and not both[row]) or found is None or not found.label:
                continue
            origin = FeatureId(here, index)
            labels.append(TransferredLabel(FeatureId(there, row), found.label, origin, cosine))
            rows[row] = FeatureWords(found.label, by=f"{release} {origin}, cosine {cosine:.3f}")
        unlabelled += len(bare)
        # 3. write them as words of the target
        if out is not None:
            write_words(out, there, rows)
            about = read_about(out, origin=TRANSFERRED, release=target_release)
            moved = sum(row is not None for row in rows)
            about["sites"][str(there)] = {
                "source": f"{release} {here}",
                "least": least,
                "features": n,
                "labelled": moved,
            }
            write_about(out, about)
        for one in (source[here], target[there]):
            one.unload()
    if progress:
        progress(len(pairs), len(pairs), "done")
    return Transfer(tuple(labels), unlabelled)
