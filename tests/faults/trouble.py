"""The faults of a campaign's server."""

from .server import (
    CloseBeforeAnswer,
    Cut,
    Delay,
    Drip,
    Endless,
    Fault,
    Garbage,
    Stall,
    Status,
    WrongRange,
    WrongTotal,
    WrongValidator,
)

# Answers that would be believed at first: not for the request that opens an image.
LIES: tuple[Fault, ...] = (
    WrongRange(1),
    WrongRange(16 << 10),
    WrongTotal(1),
    WrongTotal("*"),
    WrongTotal(1 << 70),
    WrongValidator(),
)

# Without an endless body: its wrong bytes under a right head could not be detected.
FAILURES: tuple[Fault, ...] = (
    Status(500),
    Status(502, body=b"<html>Bad Gateway</html>"),
    Status(503),
    Status(429, (("Retry-After", "1"),)),
    Status(403),
    Status(404),
    Status(416),
    Status(200, body=b"a page of a hotel's network"),
    Delay(0.2),
    Stall(),
    Stall(after=100),
    Stall(after=20_000),
    Cut(0),
    Cut(10_000),
    Cut(50_000),
    CloseBeforeAnswer(),
    Garbage(b"\x16\x03\x01 this is no HTTP"),
    Garbage(b"HTTP/1.1 206 Partial Content\r\n\r\n"),
    Drip(20_000.0),
    Endless("headers"),
    Endless("interim"),
)
