"""The paper's experiments on a running model: origins of features, deactivation, transition matrices, their tables."""
