"""Models of the transformers library after the protocol that methods decode with."""
