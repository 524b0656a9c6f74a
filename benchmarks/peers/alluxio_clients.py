"""The published alluxiofs, unchanged, reading from our worker through the Alluxio dialect."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import LENGTHS, Peer, Served, UnavailableError

if TYPE_CHECKING:
    from benchmarks.scene import Scene

_KNOWN_S = 30.0
_DATA_PORT = 29998  # 1.1.17 knows no other


@contextlib.contextmanager
def _serve(scene: Scene, *, version: str) -> Iterator[Served]:
    from kara_worker.testing.cluster import LocalCluster
    from kara_worker.testing.etcd_server import EtcdServer

    home = scene.home / f"alluxio-{version}"
    listeners = {"alluxio_list_port": 0, "alluxio_dict_port": 0, "alluxio_data_port": _DATA_PORT}
    mounts = {"near": {"url": f"file://{scene.files}", "freshness": "immutable"}}
    path = f"file://{scene.files / scene.names['big'][0]}"
    with contextlib.ExitStack() as stack:
        etcd = stack.enter_context(EtcdServer())
        cluster = LocalCluster(
            1, mounts=mounts, etcd=etcd, directory=home, capacity_bytes="1GiB", **listeners
        )
        with on_cores(SERVER_CORES):
            try:
                stack.enter_context(cluster)
            except RuntimeError as exc:
                raise UnavailableError(f"our worker with the dialect: {str(exc)[-300:]}") from exc
        _wait_known(cluster)
        worker = cluster.workers[0]
        client: dict[str, Any] = {"load_balance_domain": None}
        client["worker_hosts"] = f"127.0.0.1:{worker.ready['alluxio_ports'][1]}"
        if version == "1.0.17":
            client = {"etcd_hosts": etcd.host, "etcd_port": etcd.port, "cluster_name": cluster.cluster_name}
        options = {"client": client, "path": path}
        yield Served(
            options, (worker.pid, etcd.pid), lambda: cluster.total("kara_worker_store_read_bytes_total")
        )


def _wait_known(cluster: Any) -> None:
    deadline = time.monotonic() + _KNOWN_S
    while not cluster.workers[0].metrics()["kara_worker_alluxio_known_workers"]:
        if time.monotonic() > deadline:
            raise UnavailableError("our worker does not find itself in etcd")
        time.sleep(0.05)


def _peer(version: str, *requirements: str, lengths: tuple[str, ...] = tuple(LENGTHS)) -> Peer:
    return Peer(
        f"alluxiofs {version} on our dialect",
        f"alluxiofs_{version}",
        __name__,
        "the published client, unchanged, on our worker; cat_file with start and end",
        partial(_serve, version=version),
        rival="kara_cat_tcp",
        requirements=(f"alluxiofs=={version}", *requirements),
        lengths=lengths,
    )


PEERS = (
    _peer("1.0.17", "protobuf<3.21", "requests"),
    # a whole file of this size it refuses itself: cURL error 63, "Maximum file size exceeded"
    _peer("1.1.17", "requests", lengths=tuple(LENGTHS)[:3]),
)


class Reader:
    def __init__(self, options: dict[str, Any]) -> None:
        from alluxiofs import AlluxioFileSystem

        self._fs = AlluxioFileSystem(**options["client"])
        self._path = options["path"]

    def read(self, length: int, start: int) -> bytes:
        part = {"start": start, "end": start + length} if length else {}
        found: bytes = self._fs.cat_file(self._path, **part)
        return found
