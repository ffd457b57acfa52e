"""lazyfs: remote disk images as local files, fetched as they are read."""

__version__ = "0.1.0"
