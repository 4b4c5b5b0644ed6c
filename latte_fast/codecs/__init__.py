"""Frozen networks between films or words and what a model sees: VAEs and the text encoder."""
