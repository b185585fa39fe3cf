"""What a sweep runs on, opened from names: themes, background texts, judge and model (section 5.3, appendix B)."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from saeflow.errors import InvalidArgument
from saeflow.experiments.inputs import model_name, opened_model
from saeflow.experiments.sampling import read_texts
from saeflow.flow.trace import Matches
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.build import refuse_other_weights
from saeflow.sources.dictionary import Dictionary
from saeflow.sources.library import load_dictionaries
from saeflow.sources.model import LanguageModel
from saeflow.steering.judges.offline import FEWEST
from saeflow.steering.sweep.scoring import MakeJudge, References
from saeflow.steering.theme import Theme, load_theme
from saeflow.steering.theme import themes as known_themes

BACKGROUND_TEXTS: Final = 300
"""The most background texts from each source."""


@dataclass(frozen=True, eq=False)
class SweepInputs:
    """What a sweep runs on.

    Attributes:
        model: the model that generates.
        dictionaries: by site.
        matches: what graphs are grown from, such as an atlas; None after they are grown.
        background: texts about nothing in particular, for measuring typical sizes.
        release: name of the dictionaries.
        matched: describes the matches, with a checksum, for the record of a run.
        batch: the most texts generated at a time. Another batch size changes rounding, and so occasionally a text.
    """

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    matches: Matches | None
    background: Sequence[str] = ()
    release: str = ""
    matched: str = ""
    batch: int = 256


def find_themes(names: Sequence[str], release: str) -> list[Theme]:
    """The named themes, by name, file or folder of files; without names, all that come with saeflow for the release.

    The name "found" stands for the themes of the release that `saeflow themes find` found and that come with saeflow.

    Raises:
        InvalidArgument: without names when no theme of the release comes with saeflow; for an unknown name.
        BadFile: when a theme's file cannot be read.
    """
    shipped = {theme.release for theme in known_themes()}
    under = release if release in shipped else ""
    if names:
        return [theme for name in names for theme in _named(name, under)]
    if not under:
        raise InvalidArgument(f"no themes of {release!r} come with saeflow. Name the .toml file of one with --themes.")
    return list(known_themes(release))


def _named(name: str, release: str) -> Sequence[Theme]:
    if release and (group := known_themes(release, name)):
        return group
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (files := sorted(folder.glob("*.toml"))):
            raise InvalidArgument(f"{folder} holds no .toml file of a theme. `saeflow themes find` writes some.")
        return [load_theme(str(path)) for path in files]
    return [load_theme(name, release)]


def background_texts(names: Sequence[str], release: str, seed: int = 0) -> list[str]:
    """Background texts from the named datasets; without names, those of the release if it is a pack, or else none.

    Raises:
        InvalidArgument, MissingExtra, BadFile, Unreachable: when a dataset cannot be read.
    """
    from saeflow.steering.judges.offline import pack_background

    if not names:
        return pack_background(release)
    return read_texts(names, BACKGROUND_TEXTS, seed)


def judge_maker(
    kind: str, model: str, url: str, background: Sequence[str], samples: tuple[int, int] = (FEWEST, FEWEST)
) -> MakeJudge:
    """A function that makes the judge from the unsteered texts; raises early if the judge cannot work.

    Args:
        kind: "offline" or "llm".
        model: name of the llm; "" for the default.
        url: address of the llm; "" for the default.
        background: texts that the offline judge contrasts themes with.
        samples: how many samples each setting of the grid will have, and each chosen setting.

    Raises:
        InvalidArgument: for another kind, or an offline judge without background or with too few samples.
        MissingExtra: when the judge's packages are not installed.
    """
    from saeflow.steering.judges.llm import LLMJudge
    from saeflow.steering.judges.offline import OfflineJudge

    if kind == "llm":
        llm = LLMJudge(model, url or None)
        return lambda _: llm
    if kind != "offline":
        raise InvalidArgument(f"--judge {kind!r} is none of offline, llm.")
    if not background:
        raise InvalidArgument(
            "the offline judge tells a theme from other texts, and there are none for this release. Give some with "
            "--background: a .txt, .jsonl or .parquet file, or a dataset such as fineweb."
        )

    if min(samples) < FEWEST:
        raise InvalidArgument(
            f"--samples {samples[0]} with --confirm {samples[1]}: the offline judge compares texts with {FEWEST} "
            "unsteered samples or more. Give at least so many, better 50, or --judge llm."
        )

    def offline(references: References) -> OfflineJudge:
        # themes with the same prompt share its samples: count each sample once
        samples = dict.fromkeys(itertools.chain.from_iterable(references.values()))
        return OfflineJudge(background, list(samples))

    return offline


def open_inputs(
    release: str,
    matches: Atlas,
    background: Sequence[str],
    *,
    model: str = "",
    device: str = "cpu",
    batch: int = 256,
    prepend_bos: bool | None = None,
) -> SweepInputs:
    """Open the model and dictionaries that go with an atlas; record a checksum of its tables.

    Raises:
        InvalidArgument: when the model of the release is unknown, or the atlas was made from other weights.
        UnknownRelease, BadFile, Unreachable: when something cannot be opened.
    """
    dictionaries = load_dictionaries(release, device=device)
    named = model_name(release, dictionaries, model)
    refuse_other_weights(matches, dictionaries)
    tables = sorted((str(source), str(target), sha) for (source, target), (_, sha) in matches.files.items())
    digest = hashlib.sha256(json.dumps(tables).encode()).hexdigest()[:12]
    loaded = opened_model(release, dictionaries, named, device=device, prepend_bos=prepend_bos)
    made_by = f"{matches.method}, tables {digest}"
    return SweepInputs(loaded, dictionaries, matches, background, release, made_by, batch)
