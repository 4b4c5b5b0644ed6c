"""Drawing clips from trained models: requests, sources, the sampling loop, long clips, CUDA graphs, files."""
