"""What will be wanted soon."""
