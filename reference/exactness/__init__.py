"""exactness."""
