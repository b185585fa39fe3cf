"""Experiments of the paper on a running model: origins of features, causal trials, what they add up to."""
