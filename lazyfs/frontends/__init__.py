"""Who asks for the bytes."""
