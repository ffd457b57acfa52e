"""Making foreign text safe to show."""


def printable(text: str) -> str:
    """``text`` with control and other unprintable characters replaced by ``?``, as in ls."""
    return "".join(c if c.isprintable() else "?" for c in text)
