"""The tour: a real image, a real server and a real mount, all on this machine."""
