"""TLS for an NBD server, with certificates or pre-shared keys."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from lazyfs.core.errors import UsageError
from lazyfs.core.options import TlsOptions

CIPHERS = "ECDHE-PSK:DHE-PSK:PSK:!eNULL:!kRSAPSK"  # for pre-shared keys
_HINT = "lazyfs"


def tls_context(options: TlsOptions) -> ssl.SSLContext:
    """The server's TLS context. Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.certificates is not None:
        _use_certificates(context, options.certificates, verify_peer=options.verify_peer)
    elif options.keys is not None:
        _use_keys(context, options.keys)
    return context


def parse_keys(text: str) -> dict[str, bytes]:
    """The keys in a file, by user name. Raises ValueError."""
    keys = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            name, colon, key = line.strip().rpartition(":")
            if not (name and colon and key):
                raise ValueError(f"line {number} is not NAME:KEY")
            try:
                keys[name] = bytes.fromhex(key)
            except ValueError:  # its own message would repeat the key
                raise ValueError(f"the key in line {number} is not hexadecimal") from None
    if not keys:
        raise ValueError("there is none in it")
    return keys


def _use_certificates(context: ssl.SSLContext, directory: Path, *, verify_peer: bool) -> None:
    try:
        context.load_cert_chain(directory / "server-cert.pem", directory / "server-key.pem")
        if verify_peer:
            context.load_verify_locations(directory / "ca-cert.pem")
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # includes ssl.SSLError
        raise UsageError(
            f"the certificates in {directory} cannot be used: {error.strerror or error}",
            "it needs server-cert.pem and server-key.pem; for --tls-verify-peer ca-cert.pem too",
        ) from error


def _use_keys(context: ssl.SSLContext, file: Path) -> None:
    if not hasattr(context, "set_psk_server_callback"):
        raise UsageError(
            "--tls-psk needs Python 3.13 or later", "use certificates: --tls-certificates"
        )
    try:
        keys: Mapping[str, bytes] = parse_keys(file.read_text())
    except OSError as error:
        raise UsageError(
            f"the keys in {file} cannot be read: {error.strerror}",
            "see that it is there, and who may read it",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"the keys in {file} cannot be used: {error}", "make them with psktool(1)"
        ) from error
    # In TLS 1.3, OpenSSL and GnuTLS bind such keys to different hashes.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # An unknown user gets an empty key, which OpenSSL refuses.
    context.set_psk_server_callback(lambda name: keys.get(name or "", b""), _HINT)
