"""Which addresses a store's HTTP client may connect to (server-side request forgery).

A worker stands inside the network and fetches what URLs say, redirects included; these rules keep it
from being sent to a cloud's metadata service, which hands out credentials, or to its neighbours.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Metadata and host services outside the link-local ranges, each from its vendor's documentation.
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure, WireServer
        "192.0.0.192",  # Oracle Cloud, classic
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address


class AddressRefused(Exception):
    """Not an OSError: the HTTP library would take that for a broken connection and try again."""


class AddressRule:
    """Judges every address before it is connected to, so that a name cannot change its mind in between.

    - Link-local, multicast and metadata addresses: never.
    - Private and loopback ones: on the mount's own host, because an operator named it; on other
      hosts (redirects) only where the mount's own host is private, or with `allow_private`.
    - A host that was public when it was first reached stays so: a name that is rebound to a private
      address later is refused.
    """

    def __init__(self, home: str, *, allow_private: bool = False) -> None:
        self._home = home.lower()
        self._allow_private = allow_private
        self._home_is_private: bool | None = None  # not reached yet

    def allows(self, host: str, address: str) -> bool:
        """`address` is numeric, as getaddrinfo gives it."""
        return not self.refusal(host, address)

    def refusal(self, host: str, address: str) -> str:
        """Why the address is refused; "" if it is not."""
        for form in _forms(address):
            if form.is_link_local or form.is_multicast or form in _METADATA:
                return f"{host} is at {address}: link-local and metadata addresses are refused"
            if not _is_private(form) or self._allow_private or self._home_is_private:
                continue
            if host.lower() == self._home and self._home_is_private is None:
                continue
            return (
                f"{host} is at {address}: private addresses are refused for a mount of the public host "
                f"{self._home} (option allow_private)"
            )
        return ""

    def connected(self, host: str, address: str) -> None:
        if self._home_is_private is None and host.lower() == self._home:
            self._home_is_private = any(map(_is_private, _forms(address)))


def _forms(address: str) -> Iterator[_Address]:
    """The address and every IPv4 address that is written inside it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        yield parsed
    elif parsed.ipv4_mapped is not None:
        yield parsed.ipv4_mapped
    else:
        yield parsed
        if parsed.sixtofour is not None:
            yield parsed.sixtofour
        if parsed in _NAT64:
            yield ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)


def _is_private(address: _Address) -> bool:
    """Whatever the Internet does not route: also shared (100.64/10), unspecified and reserved addresses."""
    return not address.is_global
