"""What a client shows to workers: a bearer token, and its side of TLS."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from time import monotonic, time

from kara_cache.config import SYSTEM_CA, TlsConfig
from kara_cache.errors import ConfigError
from kara_cache.secret_ref import Secret
from kara_cache.token import VERBS, Claims, mint

TOKEN_TTL_S = 600  # of tokens that the client mints; renewed at half of it
_REREAD_S = 10.0  # a token in a file may have been renewed by whoever gives it


class Authorization:
    """The value of the Authorization header. Thread-safe; works on after a fork."""

    def __init__(self, *, token: Secret | None = None, secret: Secret | None = None) -> None:
        self._token = token
        self._secret = secret
        self._value = ("", 0.0)  # and the monotonic second from which it is made anew

    def __call__(self) -> str:
        """Raises ConfigError when the token or secret cannot be read."""
        value, until = self._value
        if monotonic() < until:
            return value
        if self._secret is not None:
            claims = Claims(
                VERBS, "/", int(time()) + TOKEN_TTL_S, f"{socket.gethostname()}:{os.getpid()}"[:200]
            )
            value, valid_s = f"Bearer {mint(self._secret.reveal().encode(), claims)}", TOKEN_TTL_S / 2
        elif self._token is not None:
            value, valid_s = f"Bearer {self._token.reveal()}", _REREAD_S
        else:
            return ""
        self._value = value, monotonic() + valid_s
        return value


class ClientTls:
    """The context for connections to workers, made at first use and again in a forked child."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._context: ssl.SSLContext | None = None

    def __call__(self) -> ssl.SSLContext:
        """Raises ConfigError when a file cannot be used."""
        if self._context is None:
            self._context = _context(self._config)
        return self._context

    def after_fork(self) -> None:
        """In the child: OpenSSL's locks in the old context may be held by threads that do not exist here."""
        self._context = None


def _context(config: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if config.ca == SYSTEM_CA else config.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = config.verify_hostname
        if config.cert:
            context.load_cert_chain(config.cert, config.key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"tls: ca {config.ca!r}, cert {config.cert!r}, key {config.key!r}: {exc}") from exc
    return context


def authorization(token: Secret | None, secret: Secret | None) -> Callable[[], str] | None:
    """None where there is nothing to show."""
    return Authorization(token=token, secret=secret) if token is not None or secret is not None else None
