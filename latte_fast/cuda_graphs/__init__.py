"""CUDA graphs of a model: of its forward for sampling, of its forward and backward for training."""
