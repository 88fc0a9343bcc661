"""What a model is, on a disk or on a hub: references, headers, folders, adapters, GGUF files, the model store."""
