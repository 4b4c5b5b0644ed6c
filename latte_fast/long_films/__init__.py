"""Films longer than a model's clips, of any length in constant memory: FIFO, fused windows, rollouts."""
