"""Frozen encoders and decoders: VAEs between videos and latents, and text encoders."""
