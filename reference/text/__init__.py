"""Decoders: from tokens to text, and which of it is settled."""
