"""What drafts are made of beside the model: look-ahead vectors, adapter, head, refinement."""
