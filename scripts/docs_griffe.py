"""The griffe extension used for the site's reference; the work is done in `docs_raises`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from griffe import Extension

sys.path.insert(0, str(Path(__file__).parent))
from docs_raises import with_sentences


class RaisesInWords(Extension):
    """Rewrites the `Raises:` section of every docstring as it is read."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = with_sentences(obj.docstring.value)
