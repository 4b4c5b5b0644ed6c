"""A run's folder, read and written: configuration, checkpoints, log, curves, and trained models back from it."""
