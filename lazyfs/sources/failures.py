"""Turning foreign exceptions into words: the only module that inspects them."""

import os
import socket
import ssl

from lazyfs.core.errors import UntrustedServer

# OpenSSL's reasons, in its various versions, for input that is not TLS.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


def untrusted(host: str, error: BaseException) -> UntrustedServer | None:
    """The error for an invalid certificate; None if the cause was something else."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedServer(
                f"the certificate of {host} does not hold: {cause.verify_message}",
                "give the right authority with --cacert, or accept any with --insecure",
            )
    return None


def reason(error: BaseException) -> str:
    """The operating system's text for a failure, or else the library's."""
    for cause in reversed(_causes(error)):
        if isinstance(cause, ssl.SSLError) and cause.reason:
            said = cause.reason.replace("_", " ").lower()
            return f"{said}: it does not speak TLS" if cause.reason in _NOT_TLS else said
        if isinstance(cause, socket.gaierror):
            return str(cause.strerror)
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return str(error).strip() or type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and its causes, outermost first; of a group, its first member."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        if isinstance(step, BaseExceptionGroup):
            step = step.exceptions[0]
        else:
            step = step.__cause__ or step.__context__
    return chain
