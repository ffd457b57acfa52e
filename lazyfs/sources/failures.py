"""What went wrong below, in words: the one place where foreign exceptions are looked into."""

import os
import socket
import ssl

from lazyfs.errors import UntrustedServer


def untrusted(host: str, error: BaseException) -> UntrustedServer | None:
    """The error that a certificate which does not hold means; None if it was something else."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedServer(
                f"the certificate of {host} does not hold: {cause.verify_message}",
                "give the right authority with --cacert, or accept any with --insecure",
            )
    return None


def reason(error: BaseException) -> str:
    """The operating system's own words for a failure, or else the library's."""
    for cause in reversed(_causes(error)):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return cause.reason.replace("_", " ").lower()
        if isinstance(cause, socket.gaierror):
            return str(cause.strerror)
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return str(error).strip() or type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and what it was raised from, outermost first; of a group, its first member."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        if isinstance(step, BaseExceptionGroup):
            step = step.exceptions[0]
        else:
            step = step.__cause__ or step.__context__
    return chain
