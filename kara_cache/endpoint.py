"""Host and port as people write them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from kara_cache.errors import ConfigError

_HOST = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_BRACKETS = re.compile(r"\[([0-9A-Fa-f:.%A-Za-z]+)\](?::(.*))?", re.ASCII | re.DOTALL)


class Endpoint(NamedTuple):
    """Where to connect to. `str` gives `host:port`, IPv6 addresses in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Endpoint:
        """`host`, `host:port`, `[::1]` or `[::1]:port`. Raises ConfigError."""
        text = text.strip()
        if "://" in text:
            raise ConfigError(
                f"address {text.partition('?')[0]!r}: want host:port, not a URL; TLS is an option of its own"
            )
        match = _BRACKETS.fullmatch(text)
        if match is not None:
            host, port = match[1], match[2]
        else:
            host, colon, rest = text.partition(":")
            port = rest if colon else None
            if not _HOST.fullmatch(host):
                raise ConfigError(f"address {text!r}: want host:port or [IPv6 address]:port")
        if port is None and default_port is not None:
            return cls(host, default_port)
        if port is None or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise ConfigError(f"address {text!r}: want a port, 1 .. 65535, after the host")
        return cls(host, int(port))

    @classmethod
    def parse_all(cls, texts: Iterable[str], default_port: int | None = None) -> tuple[Endpoint, ...]:
        """In order, without repetitions."""
        return tuple(dict.fromkeys(cls.parse(text, default_port) for text in texts))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a listener on `host`; no for any name but localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
