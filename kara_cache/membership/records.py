"""What workers write into etcd: keys, and JSON values to and from `WorkerInfo`.

    /ServiceDiscovery/{cluster}/{id}     under a lease: the worker lives. Alluxio's layout, which its
                                         Python clients up to 1.0.17 read; what is ours stands under "Kara".
    /KaraCache/{cluster}/members/{id}    without lease: the worker has a place in the table. The same
                                         value and, once its lease was lost, "passive_since".

Nothing else may ever stand under the first prefix: one value that is not Alluxio's breaks every
Alluxio client of the cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from kara_cache.errors import ConfigError, FormatError
from kara_cache.membership.base import MemberState, WorkerInfo

MAX_VALUE_BYTES = 64 << 10  # ours are under 1 KiB; a larger one was not written by us
IDENTITY_VERSION = 1  # Alluxio's number for identities that are a UUID; its ring hashes it with the id

_ID = re.compile(r"[0-9a-f]{32}")
_CLUSTER = re.compile(r"[^/\s][^/\x00-\x1f]{0,254}")


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """A worker that holds its lease."""

    info: WorkerInfo
    instance: str = ""  # another one for every start of the process
    directory: str = ""  # names the page directory on its host; a copy of it elsewhere has another
    alluxio_port: int = 0  # where Alluxio clients find `/v1/*`; 0 means the data port


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A worker that has a place in the table, alive or not."""

    info: WorkerInfo
    passive_since: float = 0.0  # Unix seconds by the clock of whoever saw the lease end; 0 means not passive


def live_prefix(cluster: str) -> str:
    return f"/ServiceDiscovery/{_checked(cluster)}/"


def member_prefix(cluster: str) -> str:
    return f"{cluster_prefix(cluster)}members/"


def cluster_prefix(cluster: str) -> str:
    """Above all keys of ours that Alluxio does not know."""
    return f"/KaraCache/{_checked(cluster)}/"


def _checked(cluster: str) -> str:
    if not _CLUSTER.fullmatch(cluster):
        raise ConfigError(f"cluster_name: want 1 to 255 characters without '/', got {cluster!r}")
    return cluster


_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_OptionalPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_Size = Annotated[int, msgspec.Meta(ge=0)]


class _Identity(msgspec.Struct, frozen=True):
    version: int
    identifier: str


class _Address(msgspec.Struct, frozen=True):
    Host: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[!-~]+$")]  # goes into request heads
    HttpServerPort: _OptionalPort = 0
    ContainerHost: str = ""
    RpcPort: int = 0
    DataPort: int = 0
    SecureRpcPort: int = 0
    NettyDataPort: int = 0
    WebPort: int = 0
    DomainSocketPath: str = ""  # Alluxio's own protocol would be spoken there, so never our socket


class _Kara(msgspec.Struct, frozen=True):
    port: _Port
    socket_path: str = ""
    boot_id: str = ""
    capacity_bytes: _Size = 0
    state: str = MemberState.ACTIVE.value
    admin_port: _OptionalPort = 0
    software: str = ""
    instance: str = ""
    directory: str = ""
    passive_since: float = 0.0
    alluxio_ports: tuple[_OptionalPort, _OptionalPort, _OptionalPort] = (0, 0, 0)


class _Value(msgspec.Struct, frozen=True):
    """Unknown fields are ignored: a newer worker may write more."""

    Identity: _Identity
    WorkerNetAddress: _Address
    Kara: _Kara
    State: str = "AUTHORIZED"
    GenerationNumber: int = -1
    ServiceEntityName: str = ""


def encode_live(record: LiveRecord) -> bytes:
    kara = _kara(record.info, instance=record.instance, directory=record.directory)
    return _encode(record.info, kara, record.alluxio_port)


def encode_member(record: MemberRecord) -> bytes:
    return _encode(record.info, _kara(record.info, passive_since=record.passive_since), 0)


def _kara(info: WorkerInfo, **extra: Any) -> _Kara:  # Any: the fields of _Kara named by the two callers
    return _Kara(
        port=info.port,
        socket_path=info.socket_path,
        boot_id=info.boot_id,
        capacity_bytes=info.capacity_bytes,
        state=info.state.value,
        admin_port=info.admin_port,
        software=info.software,
        alluxio_ports=info.alluxio_ports,
        **extra,
    )


def _encode(info: WorkerInfo, kara: _Kara, alluxio_port: int) -> bytes:
    if not _ID.fullmatch(info.id):
        raise ConfigError(f"worker id: want 32 lower-case hex digits, got {info.id!r}")
    address = _Address(
        Host=info.host,
        HttpServerPort=alluxio_port or info.port,
        RpcPort=info.port,
        DataPort=info.port,
        NettyDataPort=info.port,
        WebPort=info.admin_port,
    )
    value = _Value(_Identity(IDENTITY_VERSION, info.id), address, kara, ServiceEntityName=info.id)
    return msgspec.json.encode(value)


def decode_live(worker_id: str, value: bytes) -> LiveRecord:
    """`worker_id` is the key's last part. FormatError when no worker of ours wrote this."""
    decoded = _decode(worker_id, value)
    info = _info(decoded)
    if info.state is MemberState.PASSIVE:
        raise FormatError("a live worker cannot be passive")
    address, kara = decoded.WorkerNetAddress, decoded.Kara
    alluxio_port = 0 if address.HttpServerPort == kara.port else address.HttpServerPort
    return LiveRecord(info, kara.instance, kara.directory, alluxio_port)


def decode_member(worker_id: str, value: bytes) -> MemberRecord:
    """As `decode_live`. The state in the value is what the worker last said of itself."""
    decoded = _decode(worker_id, value)
    return MemberRecord(_info(decoded), decoded.Kara.passive_since)


def as_passive(record: MemberRecord) -> WorkerInfo:
    return replace(record.info, state=MemberState.PASSIVE)


def _decode(worker_id: str, value: bytes) -> _Value:
    if len(value) > MAX_VALUE_BYTES:
        raise FormatError(f"{len(value)} bytes exceed {MAX_VALUE_BYTES}")
    try:
        decoded = msgspec.json.decode(value, type=_Value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise FormatError(str(exc)) from None
    if not _ID.fullmatch(worker_id) or decoded.Identity.identifier != worker_id:
        raise FormatError(f"key is for {worker_id!r}, value for {decoded.Identity.identifier!r}")
    return decoded


def _info(value: _Value) -> WorkerInfo:
    kara = value.Kara
    try:
        state = MemberState(kara.state)
    except ValueError as exc:
        raise FormatError(str(exc)) from None
    return WorkerInfo(
        id=value.Identity.identifier,
        host=value.WorkerNetAddress.Host,
        port=kara.port,
        socket_path=kara.socket_path,
        boot_id=kara.boot_id,
        capacity_bytes=kara.capacity_bytes,
        state=state,
        admin_port=kara.admin_port,
        software=kara.software,
        alluxio_ports=kara.alluxio_ports,
    )
