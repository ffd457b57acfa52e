"""Images: source, cache, prefetch and layers, put together."""
