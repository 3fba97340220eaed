"""HTTPS served directly: certificate and key to an SSL context."""

from __future__ import annotations

import ssl


def context(certificate: str, key: str) -> ssl.SSLContext:
    """A server's context, from PEM files: the certificate with its chain, and its key.

    Raises ValueError, in one line, when one of them cannot be used.
    """
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            with open(path, "rb") as file:
                file.read(1)
        except OSError as error:
            raise ValueError(f"cannot read the {what} {path}: {error.strerror}") from error

    def refuse() -> str:
        # Without this OpenSSL asks on the terminal, and the server would wait there.
        raise ValueError(f"the key {key} has a passphrase; give one without: openssl pkey -in KEY -out PLAIN")

    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        made.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        words = "do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "are not PEM files of both"
        raise ValueError(f"the certificate {certificate} and the key {key} {words} ({error.reason})") from error
    return made
