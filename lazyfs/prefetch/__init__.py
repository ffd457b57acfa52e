"""Prefetch: predicting reads, and fetching their ranges ahead of the reader."""
