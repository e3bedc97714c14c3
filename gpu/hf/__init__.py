"""Models of the transformers library behind the protocol that methods decode with."""
