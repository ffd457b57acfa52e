"""Reading the directory tree of ISO 9660 and UDF images."""
