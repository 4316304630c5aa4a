"""Servers of one model, and what asks them, for `benchmarks.serve`."""
