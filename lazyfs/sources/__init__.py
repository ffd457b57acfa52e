"""Sources: the servers and files that images are read from."""
