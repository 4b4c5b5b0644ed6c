"""Films of token transformers: tokens drawn one after the other, in windows or a hierarchy, and decoded by a VQGAN."""
