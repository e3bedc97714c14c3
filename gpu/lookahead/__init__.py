"""The trained parts that draft with the model: look-ahead vectors, adapter, head, refinement."""
