"""Prepares docstrings for the site: entries of `Raises:` that are prose become sentences.

Griffe expects entries of the form "Error: when". An entry such as "Nothing." or "As `match` does." names no error: the
first is dropped, the second becomes a sentence.
"""

from __future__ import annotations

import re

_RAISES = re.compile(r"\n\n?Raises:\n((?:    .*(?:\n|$))+)")
_PAIR = re.compile(r"    [A-Z]\w*(?:, [A-Z]\w*)*: ")


def with_sentences(docstring: str) -> str:
    """Return the docstring with `Raises:` entries that name no error turned into paragraphs, or dropped."""

    def mended(match: re.Match[str]) -> str:
        entries = re.findall(r"    \S.*\n?(?:     +.*\n?)*", match[1])
        pairs = [entry for entry in entries if _PAIR.match(entry)]
        words = [" ".join(entry.split()) for entry in entries if not _PAIR.match(entry)]
        said = [f"\nRaises {each[0].lower()}{each[1:]}\n" for each in words if each != "Nothing."]
        return "\n" + "".join(said) + ("\nRaises:\n" + "".join(pairs) if pairs else "")

    return _RAISES.sub(mended, docstring)
