"""TLS contexts: which certificates are trusted."""

import ssl

from lazyfs.core.errors import UsageError
from lazyfs.core.options import ServerOptions


def client_context(options: ServerOptions) -> ssl.SSLContext:
    """A context that trusts the system's authorities (or the user's own), not a bundled list.

    VERIFY_X509_STRICT is off, as with curl: from version 3.13 on, Python would demand of private
    authorities what RFC 5280 demands of public ones. Raises UsageError.
    """
    cafile = options.cacert
    try:
        context = ssl.create_default_context(cafile=str(cafile) if cafile else None)
    except OSError as error:
        raise UsageError(
            f"{cafile} cannot be used as certificates: {error.strerror or error}",
            "give a file in PEM format",
        ) from error
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
