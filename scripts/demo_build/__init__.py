"""The stages that make the demo pack, in order: corpus, model, saes, words, texts, quality."""
