"""The operating system: programs, mounts, loop devices, files, signals."""
