"""Pure rules and values of EvoMerge: nothing here imports more than the standard library."""
