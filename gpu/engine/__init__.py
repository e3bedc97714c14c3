"""Many requests through few rows; the step captured as a CUDA graph."""
