"""The daemons of lazyfs: start, control and end."""
