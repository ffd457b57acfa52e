"""Front ends: FUSE mounts, NBD servers and the kernel's NBD devices."""
