"""The stages that build the demo pack: corpus, model, saes, texts, pack, words, quality, card."""
