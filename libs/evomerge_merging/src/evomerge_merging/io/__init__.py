"""Files of models: read with suspicion, written so that half a file never has a name."""
