"""Number formats below 16 bits: 8-bit inference, and fp8 training."""
