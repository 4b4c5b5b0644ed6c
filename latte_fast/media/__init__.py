"""Videos and pictures: reading, writing, conversion between pixels and [-1, 1]; PyAV is imported only here."""
