"""The transformer: layers, cache, weights, and a table that replaces a model in tests."""
