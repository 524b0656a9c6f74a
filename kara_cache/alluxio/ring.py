"""Which worker of an Alluxio cluster owns a path: the hash ring of Alluxio's clients, vnode for vnode.

Taken from alluxiofs 1.0.17 (client/worker_ring.py), whose numbers are those of Alluxio's Java client:

    H                   MurmurHash3 x86 32 bit, seed 0, as a signed number
    virtual node i      H(identifier | version, 4 bytes little endian | i, 4 bytes little endian)
    a path's k-th try   H(path in UTF-8 | k, 4 bytes little endian), k = 1, 2, ...
    its worker          the first virtual node strictly above that hash, beyond the last the lowest

The path is hashed as it stands, so that "s3://bucket/a" and "s3://bucket/a/" have different owners.
"""

from __future__ import annotations

import hashlib
import uuid
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import mmh3
import msgspec

from kara_cache.errors import FormatError

VIRTUAL_NODES = 5  # default of alluxiofs; Alluxio's servers have 2000, and both sides must agree
HTTP_PORT = 28080  # alluxio.worker.http.server.port
UUID_IDENTITY = 1  # version of an identity that is a UUID
MAX_TRIES = 100  # alluxiofs: max_attempts, after which fewer workers than asked for are returned


@dataclass(frozen=True, slots=True)
class RingWorker:
    """A worker of an Alluxio cluster: who it is, which is hashed, and where it is, which is not."""

    identifier: bytes
    version: int
    host: str
    http_port: int

    @classmethod
    def of_host(cls, host: str, http_port: int = HTTP_PORT) -> RingWorker:
        """A worker that is known by its host alone, as `worker_hosts` has them."""
        digest = hashlib.md5(host.encode(), usedforsecurity=False).digest()
        return cls(uuid.UUID(bytes=digest, version=3).bytes, UUID_IDENTITY, host, http_port)

    @classmethod
    def of_record(cls, value: bytes) -> RingWorker:
        """From the value of a key below `/ServiceDiscovery/{cluster}/`. Raises FormatError."""
        try:
            record = msgspec.json.decode(value, type=_Record)
            identifier = bytes.fromhex(record.Identity.identifier)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            raise FormatError(f"no record of an Alluxio worker: {exc}") from None
        address = record.WorkerNetAddress
        return cls(identifier, record.Identity.version, address.Host, address.HttpServerPort)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.http_port}"


class Ring:
    """Immutable: other workers are another ring."""

    def __init__(self, workers: Iterable[RingWorker], virtual_nodes: int = VIRTUAL_NODES) -> None:
        """Of workers with one identity the last one counts, and so it is with virtual nodes of one hash."""
        by_identity = {(worker.identifier, worker.version): worker for worker in workers}
        self.workers = tuple(by_identity.values())
        nodes = {hash_of(worker, i): worker for worker in self.workers for i in range(virtual_nodes)}
        self._hashes = sorted(nodes)
        self._owners = [nodes[value] for value in self._hashes]

    def owners(self, path: str, count: int = 1) -> tuple[RingWorker, ...]:
        """The first `count` workers for a path, or all there are; a few fewer where hashes repeat a lot."""
        wanted = min(count, len(self.workers))
        found: dict[RingWorker, None] = {}
        for attempt in range(1, MAX_TRIES + 1):
            if len(found) >= wanted:
                break
            index = bisect_right(self._hashes, hash_of_path(path, attempt))
            found[self._owners[index % len(self._owners)]] = None
        return tuple(found)

    def __repr__(self) -> str:
        return f"<Ring {len(self.workers)} workers, {len(self._hashes)} virtual nodes>"


def hash_of(worker: RingWorker, node: int) -> int:
    return mmh3.hash(worker.identifier + _int32(worker.version) + _int32(node), 0, True)


def hash_of_path(path: str, attempt: int) -> int:
    return mmh3.hash(path.encode() + _int32(attempt), 0, True)


def _int32(number: int) -> bytes:
    return number.to_bytes(4, "little", signed=True)


class _Identity(msgspec.Struct, frozen=True):
    version: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
    identifier: str


class _Address(msgspec.Struct, frozen=True):
    """What is absent is as alluxiofs has it."""

    Host: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[!-~]+$")] = "localhost"
    HttpServerPort: Annotated[int, msgspec.Meta(ge=1, le=65535)] = HTTP_PORT


class _Record(msgspec.Struct, frozen=True):
    Identity: _Identity
    WorkerNetAddress: _Address = _Address()
