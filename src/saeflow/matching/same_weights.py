"""Whose weights made an atlas: asked wherever its tables meet dictionaries.

An atlas names its features by number, so that beside retrained weights every answer is about other features, and looks
as good as a right one. Atlases state a digest of the decoder of each site (`sources.weights.digest`), which no
processor, device or file format changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from saeflow.errors import InvalidArgument
from saeflow.ids import Site
from saeflow.matching.atlas import Atlas
from saeflow.matching.methods import roles, rows_of
from saeflow.sources.dictionary import AttentionWriter, Dictionary
from saeflow.sources.library import DictionarySet


def weights_of(dictionaries: Mapping[Site, Dictionary], sites: Iterable[Site]) -> dict[Site, str]:
    """The digest of the decoder of each site.

    Raises:
        BadFile: when a decoder cannot be read.
    """
    return {site: dictionaries[site].digest() for site in sorted(sites)}


def other_weights(
    atlas: Atlas,
    dictionaries: Mapping[Site, Dictionary],
    sites: Collection[Site] | None = None,
    *,
    projector: AttentionWriter | None = None,
) -> list[Site]:
    """The sites whose dictionary is not the one the atlas was made from.

    Atlases of earlier versions state no digests: for them the fingerprints of their tables are compared, unless a
    dictionary lives in z and no model is given. What would have to be fetched from a hub first is not looked at.

    Args:
        atlas: whose tables are used.
        dictionaries: what they are used with; sites it lacks are not looked at.
        sites: those that are used; all of the atlas when None.
        projector: the model.

    Raises:
        BadFile: when a decoder, or a table of an older atlas, cannot be read.
    """
    asked = [site for site in atlas.sites if site in dictionaries and (sites is None or site in sites)]
    if isinstance(dictionaries, DictionarySet):
        asked = [site for site in asked if dictionaries.to_fetch(site) is None]
    if atlas.weights:
        found = weights_of(dictionaries, [site for site in asked if site in atlas.weights])
        return [site for site, digest in found.items() if digest != atlas.weights[site]]
    return [site for site in asked if _differs(atlas, dictionaries[site], projector)]


def refuse_other_weights(
    atlas: Atlas,
    dictionaries: Mapping[Site, Dictionary],
    sites: Collection[Site] | None = None,
    *,
    projector: AttentionWriter | None = None,
) -> None:
    """Refuse an atlas that was not made from these dictionaries; see `other_weights`.

    Raises:
        InvalidArgument: naming the sites that differ.
        BadFile: as `other_weights`.
    """
    if other := other_weights(atlas, dictionaries, sites, projector=projector):
        named = ", ".join(map(str, other[:5])) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        raise InvalidArgument(
            f"the atlas at {atlas.folder} was not built from these dictionaries: decoders differ at {named}. Build it "
            "again with `saeflow atlas build`, or give the dictionaries it was built from."
        )


def _differs(atlas: Atlas, dictionary: Dictionary, projector: AttentionWriter | None) -> bool:
    pair = next(pair for pair in atlas if dictionary.site in pair)
    expected = atlas[pair].made_from[pair.index(dictionary.site)]
    if not expected or (dictionary.projects and projector is None) or atlas.method == "pearson":
        return False
    role = roles(*pair)[pair.index(dictionary.site)]
    made = rows_of(dictionary, role, atlas.method, projector).fingerprint
    dictionary.unload()
    return made != expected
