"""Films and pictures: reading, writing, and the way between pixels and [-1, 1]; the only importer of PyAV."""
