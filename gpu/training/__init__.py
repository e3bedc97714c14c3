"""Training: look-ahead vectors, small base models and draft models, n-gram models; their text and their acceptance."""
