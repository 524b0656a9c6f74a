"""Who may do what on a listener: the one place that looks at tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kara_cache import token as tokens
from kara_cache.errors import AccessDenied
from kara_worker.http.request import Request, RequestConnection

_MAX_GRANTS = 65536


class AccessControl:
    """With secrets, every TCP request needs a token; without, the listener is loopback or mutual TLS
    (the configuration refuses anything else). A unix socket's peer was checked to have our uid."""

    def __init__(self, secrets: Sequence[bytes], *, clock: Callable[[], float] = time.time) -> None:
        self._secrets = tuple(secrets)
        self._clock = clock
        self._grants: dict[tuple[bytes, bytes], int] = {}  # (token, file) -> when it expires

    @property
    def tokens_needed(self) -> bool:
        """False where everybody may do everything."""
        return bool(self._secrets)

    def open_to(self, connection: RequestConnection) -> bool:
        return not self._secrets or connection.local

    def check(self, request: Request, verb: tokens.Verb, path: str) -> None:
        """Raises AccessDenied with the reason; never with the token."""
        claims = self.identify(request)
        if claims is not None:
            claims.require(verb, path)

    def identify(self, request: Request) -> tokens.Claims | None:
        """The caller's claims, or None where everybody may do everything."""
        if self.open_to(request.connection):
            return None
        return self._claims(request.headers.get("authorization", ""))

    def grant(self, request: Request, file: bytes, path: str) -> None:
        """Checks a read, and remembers the permission for `granted` until the token expires."""
        claims = self.identify(request)
        if claims is None:
            return
        claims.require("read", path)
        header = request.headers["authorization"]
        if len(self._grants) >= _MAX_GRANTS:
            self._grants.clear()
        self._grants[header[7:].encode(), file] = int(claims.expires)

    def granted(self, connection: RequestConnection, head: bytes, file: bytes) -> bool:
        """Whether a read of this file with the token in this request head was permitted before."""
        if self.open_to(connection):
            return True
        at = head.find(b"\r\nAuthorization: Bearer ")
        if at < 0:
            return False
        end = head.find(b"\r\n", at + 24)
        expires = self._grants.get((head[at + 24 : end if end > 0 else len(head)], file))
        return expires is not None and self._clock() < expires

    def _claims(self, header: str) -> tokens.Claims:
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise AccessDenied("a token is required: send Authorization: Bearer <token>")
        return tokens.verify(token, self._secrets, self._clock())
