"""Files on the hub, read piece by piece: only the bytes needed, each once, kept next to the hub's own cache.

    hub_file    identifies a file: its commit, entity tag and size; explains why the hub refuses one
    transport   fetches a range of it over HTTP, through the session of huggingface_hub, and retries after a cut
    ranges      ranges on disk: resumed after a kill, checksummed, checked before use

Tensors are handled in `saeflow.sources.formats.remote_tensors`, not here. Matching from weights (section 3.2 of arXiv
2502.03032) reads only `W_dec`, about half of a dictionary's file.
"""

from saeflow.sources.remote.ranges import reporting

__all__ = ["reporting"]
