"""Programs that draw with PyTorch, enumerated; a checkpoint checked."""
