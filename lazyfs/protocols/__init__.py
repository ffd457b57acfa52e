"""Protocol codecs without I/O, shared by front ends and sources."""
