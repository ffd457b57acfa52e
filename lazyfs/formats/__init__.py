"""Formats: recognising and decoding partition tables, filesystems and ISO images."""
