"""Support for other libraries' objects: upstream's and diffusers' models made fast in place, diffusers' pipelines."""
