"""Scores models item by item."""
