"""The transformer in PyTorch: layers, cache, weights, masks, and a table that replaces a model in tests."""
