"""The errors of lazyfs.

The tree::

    LazyfsError                    exit code 1, EIO
    +-- UsageError                 the command line is wrong: exit code 2
    +-- MountError                 the mount point or FUSE cannot be used
    +-- ServeError                 the place to serve cannot be used
    +-- DeviceError                a block device cannot be attached, kept or detached
    +-- ControlError               a running daemon cannot be reached, or refuses what it is asked
    +-- ToolMissing                a program that this command needs is not installed
    +-- ProgramFailed              a program of the system could not do what it was asked
    +-- OutputError                what a command makes cannot be written
    +-- LogError                   the log file cannot be written
    +-- ImageError                 the image's content is not what a command needs
    +-- ProfileError               a profile cannot be used
    +-- CacheError                 the cache cannot be used
    |   +-- CacheBusy              another lazyfs writes it
    |   +-- CacheUnknown           what is there cannot be understood
    +-- SourceError                the server, or the way to it
    |   +-- TransientError         the same request may succeed later
    |   |   +-- Unreachable        no connection, no answer, or an answer cut short
    |   |   +-- ServerBusy         5xx, 429: may carry the server's Retry-After
    |   +-- AccessDenied           401, 403, 407
    |   +-- NotFound               404, 410
    |   +-- NoRanges               the server sends whole files only
    |   +-- ImageChanged           not the image that was opened
    |   +-- BadAnswer              an answer that the protocol does not allow here
    |   +-- UntrustedServer        the TLS certificate does not hold
    +-- ReadTimeout                no data before the read's deadline
    +-- InternalError              a defect of lazyfs itself

A message says what happened and to which image; ``cure`` says what the user can do about it.
Foreign exceptions are translated where they enter (in ``sources/`` by ``failures.py``, in
``cache/``, ``frontends/`` and ``images/extraction.py``) and never propagate further.
"""

import errno


class LazyfsError(Exception):
    """Root of the tree.

    ``cure``: a clause that tells the user what to do next.
    ``usual_cure``: the class's default for it.
    """

    exit_code = 1
    errno = errno.EIO
    usual_cure = ""

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure or self.usual_cure

    def about(self, image: str) -> "LazyfsError":
        """Put the name of the image in front of the message; returns this error."""
        self.message = f"{image}: {self.message}"
        return self

    def __str__(self) -> str:
        return f"{self.message}; {self.cure}" if self.cure else self.message


class UsageError(LazyfsError):
    exit_code = 2


class MountError(LazyfsError):
    pass


class ServeError(LazyfsError):
    usual_cure = "give another --unix or --tcp"


class DeviceError(LazyfsError):
    usual_cure = "the kernel's log may say more: dmesg"


class ControlError(LazyfsError):
    """A running daemon cannot be reached, or refuses a request."""


class ToolMissing(LazyfsError):
    pass


class ProgramFailed(LazyfsError):
    usual_cure = "the kernel's log may say more: dmesg"


class OutputError(LazyfsError):
    usual_cure = "name another place, or make room there"


class LogError(LazyfsError):
    pass


class ImageError(LazyfsError):
    usual_cure = "compare the image's checksum with its publisher's"


class ProfileError(LazyfsError):
    usual_cure = "make one with: lazyfs --record FILE ..."


class CacheError(LazyfsError):
    usual_cure = "name another place with --cache-dir, or use --no-cache"


class CacheBusy(CacheError):
    usual_cure = "unmount it first"


class CacheUnknown(CacheError):
    usual_cure = "lazyfs cache rm removes it"


class SourceError(LazyfsError):
    pass


class TransientError(SourceError):
    """A failure that may pass. ``retry_after``: seconds to wait, by the server's Retry-After."""

    def __init__(self, message: str, cure: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, cure)
        self.retry_after = retry_after


class Unreachable(TransientError):
    usual_cure = "check the network and the URL"


class ServerBusy(TransientError):
    usual_cure = "try again later"


class AccessDenied(SourceError):
    usual_cure = "check URL and login"


class NotFound(SourceError):
    usual_cure = "check the URL"


class NoRanges(SourceError):
    pass


class ImageChanged(SourceError):
    usual_cure = "unmount it and mount it again to use the new version"


class BadAnswer(SourceError):
    usual_cure = "tell whoever runs the server"


class UntrustedServer(SourceError):
    pass


class ReadTimeout(LazyfsError):
    usual_cure = "check the network, or give a longer --timeout"


class InternalError(LazyfsError):
    usual_cure = "this is a defect of lazyfs: please report it"
