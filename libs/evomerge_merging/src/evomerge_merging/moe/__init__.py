"""Dense models of one build as a mixture of experts."""
