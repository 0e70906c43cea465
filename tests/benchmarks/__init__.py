"""Benchmarks: ours and the alternatives in turn, in one go. `python -m tests.benchmarks.NAME [--quick]`."""
