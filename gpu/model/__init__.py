"""The transformer in PyTorch: layers, cache, weights, masks; a table that stands for a model in tests."""
