"""Benchmark of lazyfs and other ways to use a remote image; see ``python -m bench --help``."""
