"""Whole models: Latte, its joint image-video form, checkpoints and patching."""
