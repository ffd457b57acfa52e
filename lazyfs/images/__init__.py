"""Images: a source, its cache, prefetch, and the layers above."""
