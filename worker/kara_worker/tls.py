"""The server's side of TLS."""

from __future__ import annotations

import ssl

from kara_cache.errors import ConfigError


def server_context(cert: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """TLS 1.2 or newer; with `client_ca` a client must show a certificate that it signed (mutual TLS)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key or None)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"tls: cert {cert!r}, key {key!r}, client_ca {client_ca!r}: {exc}") from exc
    return context
