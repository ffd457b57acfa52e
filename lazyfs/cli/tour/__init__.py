"""The tour of ``lazyfs demo``: a real image, server and mount, all on this machine."""
