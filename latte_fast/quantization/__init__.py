"""Number formats below 16 bits: fp8 training."""
