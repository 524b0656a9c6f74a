"""The port to membership: who serves, where, in what state. A hint with a revision, never a lock."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class MemberState(enum.Enum):
    """A worker that is gone is simply absent."""

    ACTIVE = "active"  # lease alive
    PASSIVE = "passive"  # lease lost; keeps its place in the table for a grace time, clients skip it
    DRAINING = "draining"  # finishes what it has; clients skip it


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's identity and where it listens now. The identity outlives addresses and restarts."""

    id: str  # 32 hex digits (a UUID kept in the page directory); "host:port" in a static list
    host: str
    port: int  # data port
    socket_path: str = ""  # unix socket for readers on the same host; "" when there is none
    boot_id: str = ""  # kernel boot id of its host: equal to ours means the same host
    capacity_bytes: int = 0  # weight in placement; 0 means unknown, and then all weigh the same
    state: MemberState = MemberState.ACTIVE
    admin_port: int = 0
    software: str = ""  # version of kara-cache that it runs
    # ports of the Alluxio dialect, 0 where off: /v1 in list form, /v1 in dict form, S3-style data
    alluxio_ports: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class MembershipView:
    """One consistent picture. A changed cluster is another view object: compare with `is`."""

    workers: tuple[WorkerInfo, ...]  # sorted by id; active, passive and draining
    revision: int  # grows with every change of the source
    source: str  # "etcd", "static" or "disk" (the last known one, while the source cannot be reached)


class Membership(Protocol):
    """Thread-safe, usable after fork().

    `view` is cheap enough to be called for every read and never waits for the network, except the
    first call of a process, which waits at most the connect timeout and then falls back to the last
    view kept on disk. With nothing known at all it returns a view without workers.
    """

    def view(self) -> MembershipView: ...

    def close(self) -> None: ...
