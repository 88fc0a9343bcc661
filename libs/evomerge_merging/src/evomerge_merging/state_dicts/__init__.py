"""Task vectors and masks as values, on tensors in memory: for notebooks and other programs."""
