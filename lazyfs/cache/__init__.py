"""The block cache of an image: which blocks are present, and which are being fetched."""
