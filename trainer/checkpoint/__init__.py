"""Checkpoints: weights, optimizer states, id maps, RNG, metrics and the data position, in one commit."""
