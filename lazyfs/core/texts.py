"""Text from elsewhere, made safe to show."""


def printable(text: str) -> str:
    """``text`` without what a terminal would obey, or cannot show: that becomes ``?``, as in ls."""
    return "".join(c if c.isprintable() else "?" for c in text)
