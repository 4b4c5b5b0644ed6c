"""What meets other libraries' objects: upstream's and diffusers' modules made fast in place, diffusers' pipelines."""
