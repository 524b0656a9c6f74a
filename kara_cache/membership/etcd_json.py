"""etcd's terms as values, and how its JSON gateway spells them. Pure: no sockets.

Keys and values travel as base64, 64-bit integers as strings, and fields with a zero value are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kara_cache.config import DEFAULT_ETCD_PORT
from kara_cache.endpoint import Endpoint
from kara_cache.errors import ConfigError

JsonObject = dict[str, Any]  # decoded JSON: its shape is etcd's and is read field by field

# gRPC codes (https://grpc.io/docs/guides/status-codes/) after which another endpoint may do better:
# etcd answers them while it starts or stops, has no leader or is too slow.
_TRY_ANOTHER = frozenset({1, 4, 13, 14})  # cancelled, deadline exceeded, internal, unavailable
_UNAUTHENTICATED = 16
# Answers to a request without a token, or with one from before the users changed; the code varies by release.
_TOKEN_TROUBLE = ("invalid auth token", "user name is empty", "auth store is old")


class Unreachable(Exception):
    """One endpoint did not answer, or says itself that it cannot. Does not leave EtcdClient."""


class Refused(Exception):
    """etcd answered, and any other endpoint would answer the same. Does not leave EtcdClient."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.token_trouble = code == _UNAUTHENTICATED or any(text in message for text in _TOKEN_TROUBLE)


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    mod_revision: int
    lease: int  # 0: lives until it is deleted


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change of one key. `item` is None when the key was deleted, its lease's end included."""

    key: str
    mod_revision: int
    item: KeyValue | None


@dataclass(frozen=True, slots=True)
class Header:
    """Where and when etcd answered. A cluster restored from a backup is another one, or has gone back."""

    cluster_id: int
    revision: int
    raft_term: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a `Range` found: `count` keys are there, of which `items` were asked for."""

    items: tuple[KeyValue, ...]
    count: int


@dataclass(frozen=True, slots=True)
class TxnResult:
    header: Header
    succeeded: bool
    found: tuple[Found, ...]  # one for each `Range`, in order


@dataclass(frozen=True, slots=True)
class Range:
    """The key, or with `prefix` all that begin with it; only those written since `min_mod_revision`."""

    key: str
    prefix: bool = False
    min_mod_revision: int = 0
    keys_only: bool = False

    def operation(self) -> JsonObject:
        asked: JsonObject = {"key": encode(self.key), "keys_only": self.keys_only}
        if self.prefix:
            asked["range_end"] = prefix_end(self.key)
        if self.min_mod_revision:
            asked["min_mod_revision"] = str(self.min_mod_revision)
        return {"request_range": asked}


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0

    def operation(self) -> JsonObject:
        put = {"key": encode(self.key), "value": encode(self.value), "lease": str(self.lease)}
        return {"request_put": put}


@dataclass(frozen=True, slots=True)
class Delete:
    key: str

    def operation(self) -> JsonObject:
        return {"request_delete_range": {"key": encode(self.key)}}


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Condition: the key was last written at `mod_revision`; 0 means that it does not exist."""

    key: str
    mod_revision: int

    def comparison(self) -> JsonObject:
        written = str(self.mod_revision)
        return {"key": encode(self.key), "target": "MOD", "result": "EQUAL", "mod_revision": written}


def encode(data: str | bytes) -> str:
    raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    return base64.b64encode(raw).decode("ascii")


def prefix_end(prefix: str) -> str:
    """The `range_end` (encoded) that makes a range of all keys with this prefix, which ends in ASCII."""
    raw = prefix.encode()
    return encode(raw[:-1] + bytes([raw[-1] + 1]))


def decode_item(item: JsonObject) -> KeyValue:
    return KeyValue(
        key=base64.b64decode(item.get("key", "")).decode("utf-8", "surrogateescape"),
        value=base64.b64decode(item.get("value", "")),
        mod_revision=int(item.get("mod_revision", 0)),
        lease=int(item.get("lease", 0)),
    )


def decode_event(event: JsonObject) -> KeyEvent:
    item = decode_item(event["kv"])
    return KeyEvent(item.key, item.mod_revision, None if event.get("type") == "DELETE" else item)


def decode_header(answer: JsonObject) -> Header:
    header = answer.get("header", {})
    return Header(
        cluster_id=int(header.get("cluster_id", 0)),
        revision=int(header.get("revision", 0)),
        raft_term=int(header.get("raft_term", 0)),
    )


def decode_txn(answer: JsonObject) -> TxnResult:
    ranges = (part["response_range"] for part in answer.get("responses", ()) if "response_range" in part)
    return TxnResult(
        header=decode_header(answer),
        succeeded=bool(answer.get("succeeded")),
        found=tuple(
            Found(tuple(map(decode_item, found.get("kvs", ()))), int(found.get("count", 0)))
            for found in ranges
        ),
    )


def decode_answer(status: int, raw: bytes) -> JsonObject:
    """The answer of a call.

    Raises:
        Unreachable: this endpoint cannot help, or is not etcd.
        Refused: etcd will not do it.
    """
    try:
        answer = json.loads(raw)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        shown = raw[:200].decode("ascii", "replace").strip()
        raise Unreachable(f"status {status} and no JSON object (is this etcd's client port?): {shown!r}")
    if status == 200 and "error" not in answer:
        return answer
    message, code = error_of(answer)
    if code in _TRY_ANOTHER or (status >= 500 and not code):
        raise Unreachable(message)
    raise Refused(message, code)


def error_of(answer: JsonObject) -> tuple[str, int]:
    """Message and gRPC code of an error document, of a call or in a stream."""
    error = answer.get("error")
    if isinstance(error, dict):
        return str(error.get("message", error)), int(error.get("grpc_code") or error.get("code") or 0)
    return str(answer.get("message") or error or answer)[:500], int(answer.get("code") or 0)


def parse_endpoints(
    hosts: str | Sequence[str], *, port: int = DEFAULT_ETCD_PORT, tls: bool = False
) -> tuple[str, ...]:
    """URLs of "h1,h2:2379,[::1]:2379,https://h3" or a list of such; `port` and `tls` fill in what is missing.

    Raises:
        ConfigError: an item is no endpoint, holds a password, or there is none.
    """
    items = hosts.split(",") if isinstance(hosts, str) else hosts
    named = tuple(item.strip() for item in items if item.strip())
    if not named:
        raise ConfigError(f"etcd_hosts names no endpoint: got {hosts!r}")
    return tuple(_endpoint_url(item, port, tls) for item in named)


def _endpoint_url(item: str, port: int, tls: bool) -> str:
    scheme, _, address = item.rpartition("://")
    if "@" in address:  # not repeated in the message
        raise ConfigError("an etcd endpoint holds a user: give etcd_username and etcd_password instead")
    if scheme not in ("", "http", "https"):
        raise ConfigError(f"etcd endpoint {item!r}: want host, host:port or http(s)://host:port")
    try:
        endpoint = Endpoint.parse(address.removesuffix("/"), port)
    except ConfigError as exc:
        raise ConfigError(f"etcd endpoint {item!r}: {exc}") from None
    return f"{scheme or ('https' if tls else 'http')}://{endpoint}"
