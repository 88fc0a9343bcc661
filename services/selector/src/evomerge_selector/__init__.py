"""Owns runs: proposes, selects, mutates, stops."""
