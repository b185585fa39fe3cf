"""Tokens and labels made safe to show: no invisible characters, and none that a terminal or XML would interpret.

Labels and tokens come from files that others wrote. A control character in them could move a terminal's cursor or make
an SVG ill-formed, so each is replaced by a visible sign.
"""

from __future__ import annotations

import unicodedata

from saeflow.labels.words import FeatureWords

_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}


def visible(token: str) -> str:
    """A token with its whitespace and control characters as signs: `" the"` becomes `"␣the"`."""
    return "".join(_SIGNS.get(char) or _safe(char) for char in token)


def one_line(label: str) -> str:
    """A label on one line: runs of whitespace become one space, and control characters become signs."""
    return "".join(_safe(char) for char in " ".join(label.split()))


def headline(words: FeatureWords | None) -> str:
    """The label of a feature, or its strongest tokens if it has no label; empty without words."""
    if words is None:
        return ""
    return one_line(words.label) or " ".join(visible(token) for token in words.tokens)


def _safe(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cc":
        code = ord(char)
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨{code:02X}⟩"
    # Format characters change the direction of text or have no width; lone surrogates cannot be encoded;
    # noncharacters such as U+FFFE are forbidden in XML.
    if category in {"Cf", "Cs", "Zl", "Zp"} or ord(char) & 0xFFFE == 0xFFFE:
        return f"⟨{ord(char):04X}⟩"
    return char
