"""What a run learns: each objective has its data, its networks with their optimizers, and its losses."""
