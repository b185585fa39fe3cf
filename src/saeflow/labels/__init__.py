"""Words for features: what a row of a dictionary stands for, read from files. No torch."""

from saeflow.labels.words import Context, FeatureWords, Words, WordsFolder, no_words, open_words

__all__ = ["Context", "FeatureWords", "Words", "WordsFolder", "no_words", "open_words"]
