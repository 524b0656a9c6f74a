"""What the Alluxio dialect of a worker runs on, and what it refuses to start with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kara_cache.endpoint import is_loopback
from kara_cache.errors import ConfigError
from kara_cache.secret_ref import Secret

LISTENERS = ("list", "dict", "data")
_MIN_S3_SECRET_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class S3Key:
    """A pair of keys that S3 clients sign with."""

    access_key: str
    secret_key: str
    read_only: bool = False

    def __repr__(self) -> str:
        return f"<S3Key {self.access_key}{', read only' if self.read_only else ''}>"


@dataclass(frozen=True, slots=True)
class AlluxioConfig:
    """Listeners for existing `alluxiofs` and S3 clients; each is off without a port."""

    host: str = "127.0.0.1"  # of all three; beyond loopback only with `anonymous`, `secret` or `s3_keys`
    list_port: int | None = None  # /v1, registered in etcd as HttpServerPort; for alluxiofs up to 1.0.17
    dict_port: int | None = None  # /v1, 28080 by convention; for alluxiofs from 1.0.18 on
    data_port: int | None = None  # S3-style; alluxiofs 1.1 knows no other than 29998
    anonymous: tuple[str, ...] = ()  # "list,dict,data": listeners that ask nobody who they are
    anonymous_writes: bool = False  # lets anonymous callers change and delete files of the stores
    s3_keys: Secret | None = None  # a line for each: ACCESS:SECRET or ACCESS:SECRET:read; for the data port
    deadline_s: float = 15.0  # to an answer's first byte, then 503: alluxiofs waits 20 s, or for ever

    def __post_init__(self) -> None:
        for key in ("list_port", "dict_port", "data_port"):
            port = getattr(self, key)
            if port is not None and not 0 <= port < 65536:
                raise ConfigError(f"alluxio_{key}: want 0 .. 65535, got {port}")
        unknown = set(self.anonymous) - set(LISTENERS)
        if unknown:
            raise ConfigError(f"alluxio_anonymous: {sorted(unknown)}: want some of {', '.join(LISTENERS)}")
        if not 1 <= self.deadline_s <= 20:
            raise ConfigError(f"alluxio_deadline_s: want 1 .. 20, got {self.deadline_s}")

    @property
    def enabled(self) -> bool:
        return any(self.port(name) is not None for name in LISTENERS)

    def port(self, listener: str) -> int | None:
        ports = {"list": self.list_port, "dict": self.dict_port, "data": self.data_port}
        return ports[listener]

    def check_access(self, *, tokens: bool, mutual_tls: bool) -> None:
        """Every listener that is on is anonymous by name, authenticated, or on loopback of a cluster
        that asks nobody anyway. Raises ConfigError."""
        open_cluster = not tokens and not mutual_tls
        for name in LISTENERS:
            if self.port(name) is None or name in self.anonymous:
                continue
            authenticated = self.s3_keys is not None if name == "data" else tokens
            if authenticated or (open_cluster and is_loopback(self.host)):
                continue
            remedy = (
                "alluxio_s3_keys (file:/path)" if name == "data" else "secret, whose tokens callers then send"
            )
            raise ConfigError(
                f"alluxio_{name}_port on {self.host!r}: reachable without authentication; set {remedy}, "
                f'or name it in alluxio_anonymous ("{name}") to let everybody in'
            )

    def keys(self) -> tuple[S3Key, ...]:
        """What S3 clients may sign with, read now. Raises ConfigError, never with a secret in it."""
        if self.s3_keys is None:
            return ()
        return tuple(
            _parse_key(text, number) for number, text in enumerate(self.s3_keys.reveal_all(), start=1)
        )

    def shifted(self, by: int) -> AlluxioConfig:
        """For one more worker on the same node: fixed ports go up."""
        return replace(
            self,
            list_port=self.list_port and self.list_port + by,
            dict_port=self.dict_port and self.dict_port + by,
            data_port=self.data_port and self.data_port + by,
        )


def _parse_key(text: str, number: int) -> S3Key:
    access, colon, rest = text.partition(":")
    secret, _, scope = rest.partition(":")
    if not access or not colon or len(secret) < _MIN_S3_SECRET_CHARACTERS or scope not in ("", "read"):
        raise ConfigError(
            f"alluxio_s3_keys: line {number}: want ACCESS:SECRET or ACCESS:SECRET:read, "
            f"the secret of at least {_MIN_S3_SECRET_CHARACTERS} characters without a colon"
        )
    return S3Key(access, secret, read_only=scope == "read")
