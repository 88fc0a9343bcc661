"""What a finished merge is handed out as: a Hugging Face folder with its card, or one GGUF file."""
