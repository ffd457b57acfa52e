"""Stand-ins for what fails in the field: for tests, never part of a mount."""
