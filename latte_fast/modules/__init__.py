"""Parts that no family owns: embedders, linear layers, pending residuals, recompute, prompt cache, hooks."""
