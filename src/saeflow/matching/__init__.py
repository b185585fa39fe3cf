"""Matching features of two dictionaries, and the atlas of all matches of a release (section 3.2).

`table` and `atlas` read results and need no torch; `cosine` and `build` compute them and do.
"""
