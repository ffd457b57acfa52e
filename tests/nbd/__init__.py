"""lazyfs and other people's NBD clients and servers."""
