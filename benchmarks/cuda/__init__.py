"""Everything a borrowed CUDA machine has to show, the most valuable first, in one archive to go on from."""
