"""Match the features of two dictionaries, and collect the matches of a release in an atlas (section 3.2).

`table` and `atlas` read results without torch; `methods` and `build` compute them and need it.
"""
