"""Rankers in pure PyTorch: packed tensors in, logits out. Knows no rank, no Ray, no telemetry; imports nothing of
ours."""
