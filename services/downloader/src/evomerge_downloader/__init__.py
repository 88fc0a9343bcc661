"""Brings models into the model store, verified and pinned."""
