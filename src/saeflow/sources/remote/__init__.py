"""Files of the hub read piece by piece: only the bytes that are needed, each once, kept next to the hub's own cache.

    hub_file    which file it is: its commit, its entity tag, its size; and why the hub refuses one
    transport   a range of it over HTTP, through the session of huggingface_hub, tried again when it is cut
    ranges      ranges on disk: resumed after a kill, checksummed, checked before they are used

Nothing here knows of tensors: `saeflow.sources.formats.remote_tensors` does. Matching from weights alone
(section 3.2 of arXiv 2502.03032) reads `W_dec` and nothing else, about half of a dictionary's file.
"""

from saeflow.sources.remote.ranges import reporting

__all__ = ["reporting"]
