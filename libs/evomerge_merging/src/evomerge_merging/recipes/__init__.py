"""Recipes as people write them: YAML in and out, and whether one means something."""
