"""The demo pack: a small trained model, an SAE at every site, and their atlas, words and texts.

Everything in `pack/` is data made by scripts/build_demo.py; `pack/CARD.md` describes how, and what the pack
is not suitable for. The name "demo" works everywhere: `load_model("demo")`, `load_dictionaries("demo")`,
`open_atlas("demo")`.
"""

from saeflow.demo.quality import quality
from saeflow.demo.texts import DOMAINS, texts

__all__ = ["DOMAINS", "quality", "texts"]
