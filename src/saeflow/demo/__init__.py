"""The demo pack: a small trained model, an SAE at every site, their atlas, words and texts.

Everything in `pack/` is data made by scripts/build_demo.py; `pack/CARD.md` says how, and what it is not
good for. The name "demo" opens its parts everywhere: `load_model("demo")`, `load_dictionaries("demo")`,
`open_atlas("demo")`.
"""

from saeflow.demo.quality import quality
from saeflow.demo.texts import DOMAINS, texts

__all__ = ["DOMAINS", "quality", "texts"]
