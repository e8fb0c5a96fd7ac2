"""Attacks on texts and on embeddings: none of them knows what is reported."""
