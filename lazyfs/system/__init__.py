"""Interfaces to the operating system: programs, mounts, loop devices, files, signals."""
