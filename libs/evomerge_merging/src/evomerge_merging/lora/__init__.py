"""LoRA and DoRA adapters: a base seen with one, sums of them, and from a model back to an adapter."""
