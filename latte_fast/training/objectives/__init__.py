"""Training objectives: each has its data, its networks with their optimizers, and its losses."""
