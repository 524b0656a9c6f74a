"""Several real etcd processes that form one cluster, to be killed and paused one by one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kara_cache.errors import MembershipError
from kara_worker.testing.etcd_server import EtcdServer

_ATTEMPTS = 5  # as EtcdServer


class EtcdCluster:
    """Members on one machine. `EtcdServer`'s methods work on each; `start()` of one waits for a quorum."""

    def __init__(self, *, binary: str | None = None, size: int = 3) -> None:
        self._temporary = tempfile.mkdtemp(prefix="kara-etcd-")
        self.members = [
            EtcdServer(binary=binary, data_dir=Path(self._temporary) / str(number), name=f"kara-{number}")
            for number in range(size)
        ]

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def member(self, url: str) -> EtcdServer:
        return next(member for member in self.members if member.url == url)

    def start(self) -> EtcdCluster:
        """Returns when every member is healthy; MembershipError as `EtcdServer.start`."""
        try:
            form_cluster(self.members)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self._temporary, ignore_errors=True)


def form_cluster(members: Sequence[EtcdServer]) -> None:
    """Starts servers that were never started as the members of one cluster."""
    for attempt in range(_ATTEMPTS):
        peers = ",".join(f"{member.name}={member.peer_url}" for member in members)
        for member in members:
            member.peers = peers
            member.spawn()
        try:
            for member in members:
                member.wait_ready()
            return
        except MembershipError:
            for member in members:
                member.forget()
            if attempt + 1 == _ATTEMPTS or not any(member.port_was_taken() for member in members):
                raise
            for member in members:
                member.take_ports()
