"""A small family of real models to evolve, made on the spot."""
