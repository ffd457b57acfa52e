"""What of an image is here, and what is on its way."""
