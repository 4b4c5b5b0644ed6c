"""Whole models: a folder for each family, the adapter protocol that families implement, configurations, checkpoints."""
