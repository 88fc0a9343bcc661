"""Strategies of the standard library alone, a file each."""
