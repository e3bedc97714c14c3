"""The transformer: layers, cache, weights; and a table that stands for a model in tests."""
