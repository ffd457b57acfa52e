"""Compares lazyfs with other ways to use a remote image; ``python -m bench --help`` starts it."""
