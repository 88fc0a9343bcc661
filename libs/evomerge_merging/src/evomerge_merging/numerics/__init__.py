"""Exact arithmetic over tensors that are read piece by piece: sums, k-th values, rows, random numbers."""
