"""How docstrings reach the site: `Raises:` sections in words become sentences.

Griffe reads `Raises:` as "Error: when". Where a docstring says "Nothing." or "As `match` does." it has no error to
name: the first needs no section, the second is a sentence.
"""

from __future__ import annotations

import re

_RAISES = re.compile(r"\n\n?Raises:\n((?:    .*(?:\n|$))+)")
_PAIR = re.compile(r"    [A-Z]\w*: ")


def with_sentences(docstring: str) -> str:
    """The docstring with a `Raises:` section that names no error turned into a paragraph, or left out."""

    def mended(match: re.Match[str]) -> str:
        entries = re.findall(r"    \S.*\n?(?:     +.*\n?)*", match[1])
        pairs = [entry for entry in entries if _PAIR.match(entry)]
        words = [" ".join(entry.split()) for entry in entries if not _PAIR.match(entry)]
        said = [f"\nRaises {each[0].lower()}{each[1:]}\n" for each in words if each != "Nothing."]
        return "\n" + "".join(said) + ("\nRaises:\n" + "".join(pairs) if pairs else "")

    return _RAISES.sub(mended, docstring)
