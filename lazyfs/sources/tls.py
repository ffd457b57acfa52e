"""Whose certificates are believed."""

import ssl

from lazyfs.core.errors import UsageError
from lazyfs.core.options import HttpOptions


def client_context(options: HttpOptions) -> ssl.SSLContext:
    """The system's authorities (or the user's own), not a bundle carried along.

    What curl accepts is accepted: from version 3.13 on, Python also wants of private authorities
    what RFC 5280 asks of public ones. Raises UsageError.
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
