"""Tokenizers, vocabularies and chat templates of a merge; embeddings and heads follow the tokens' texts."""
