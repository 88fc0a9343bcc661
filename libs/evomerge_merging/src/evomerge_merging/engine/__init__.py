"""Recipes carried out: planned from headers, flattened, executed tensor by tensor in one pass."""
