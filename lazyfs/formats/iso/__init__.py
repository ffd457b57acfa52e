"""What is in an ISO image, and where in it."""
