"""The daemons of lazyfs: how they begin, are steered, and end."""
