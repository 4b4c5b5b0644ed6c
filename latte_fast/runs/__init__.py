"""A run's folder: its configuration, checkpoints, log and plots, and the loading and conversion of its models."""
