"""The merge engine of EvoMerge."""
