"""The real thing: real servers, real mounts, real loop devices, real signals."""
