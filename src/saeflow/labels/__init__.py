"""Words for features: what a row of a dictionary stands for.

Read from files (`words`), fetched from Neuronpedia (`neuronpedia`, `exports`), made from a model and text (`local`),
explained by a language model (`explain`), and searched (`search`). All but `local` and its `gather` work without torch.
"""

from saeflow.labels.folders import words_folder, words_folders, words_for
from saeflow.labels.words import (
    ActivationHistogram,
    Context,
    FeatureWords,
    Merged,
    Words,
    WordsFolder,
    no_words,
    open_words,
    write_words,
)

__all__ = [
    "ActivationHistogram",
    "Context",
    "FeatureWords",
    "Merged",
    "Words",
    "WordsFolder",
    "no_words",
    "open_words",
    "words_folder",
    "words_folders",
    "words_for",
    "write_words",
]
