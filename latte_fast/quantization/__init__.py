"""Narrower numbers than 16 bits: fp8 training."""
