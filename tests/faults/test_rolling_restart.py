"""Workers restarted one after another, as a chart's rolling update does it, under readers of a hot set."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import etcd_servers
import pytest
from main_job import data_bytes

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.membership.base import MemberState
from kara_worker.testing.cluster import LocalCluster, WorkerProcess
from kara_worker.testing.etcd_server import EtcdServer
from kara_worker.testing.rude_http_server import RudeHttpServer

PAGE = 64 << 10
WORKERS = 3
PATIENCE_S = 60.0
FILES = {f"set/{number}.bin": os.urandom(3 * PAGE + 1000 * number) for number in range(40)}
SET_BYTES = sum(len(data) for data in FILES.values())
SET_PAGES = sum(-(-len(data) // PAGE) for data in FILES.values())

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with etcd_servers.server() as server:
        yield server


class Scene:
    """A cluster whose workers have all of the set, and have been read from."""

    def __init__(self, store: RudeHttpServer, cluster: LocalCluster, client: CacheClient) -> None:
        self.store = store
        self.cluster = cluster
        self.client = client
        self.infos = {name: client.info(f"/web/{name}") for name in FILES}
        for name in FILES:
            assert self.read(name) == FILES[name]
        until(lambda: cluster.total("kara_worker_page_store_pages") >= SET_PAGES, "pages reach the disk")

    def read(self, name: str, start: int = 0, length: int = 1 << 30) -> bytes:
        return self.client.read(self.infos[name], start, length)

    def fetched(self) -> int:
        """Bytes that the store has sent so far."""
        return data_bytes(self.store)

    def until_everybody_sees(self, worker: WorkerProcess) -> None:
        """The client and each worker has it as active, at its address of today."""
        self.until_seen(worker.id, lambda views: set(views) == {(MemberState.ACTIVE, worker.port)})

    def until_seen(self, worker: str, enough: Callable[[list[tuple[MemberState, int]]], bool]) -> None:
        def seen() -> bool:
            views = [
                (member.state, member.port) for member in self.client.workers().workers if member.id == worker
            ]
            for other in self.cluster.workers:
                if other.id != worker:
                    members = status(other)
                    views.append((MemberState(members[worker][0]), members[worker][1]))
            return enough(views)

        until(seen, f"everybody knows of {worker}")


def status(worker: WorkerProcess) -> dict[str, tuple[str, int]]:
    """Members as this worker sees them: id to state and port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.admin_port}/status.json", timeout=30) as answer:
        members = json.load(answer)["members"]
    return {m["id"]: (m["state"], int(m["address"].rpartition(":")[2])) for m in members}


@contextmanager
def scene(etcd: EtcdServer, place: Path, **settings: object) -> Iterator[Scene]:
    (place / "secret").write_text("what workers and clients share\n")
    secret = f"file:{place / 'secret'}"
    with (
        RudeHttpServer(dict(FILES)) as store,
        LocalCluster(
            WORKERS,
            mounts={"web": {"url": store.url, "freshness": "immutable"}},
            etcd=etcd,
            directory=place,
            cluster_name=place.name,
            page_bytes=PAGE,
            secret=secret,
            **settings,
        ) as cluster,
        CacheClient(
            ClientConfig.load(env={}, **cluster.client_options, local_reads=False, secret=secret)
        ) as client,
    ):
        yield Scene(store, cluster, client)


class Readers:
    """Threads that read random pieces of the set and compare them, until the block ends."""

    def __init__(self, scene: Scene, threads: int = 2) -> None:
        self._scene = scene
        self._stop = threading.Event()
        self.errors: list[str] = []
        self.reads = 0
        self._threads = [threading.Thread(target=self._go, args=(seed,)) for seed in range(threads)]

    def _go(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._stop.wait(0.002):  # leaves the machine some time for the workers
            name = dice.choice(list(FILES))
            start = dice.randrange(len(FILES[name]))
            length = dice.choice((4096, PAGE, len(FILES[name])))
            try:
                right = self._scene.read(name, start, length) == FILES[name][start : start + length]
            except Exception as exc:
                self.errors.append(repr(exc))
                return
            if not right:
                self.errors.append(f"wrong bytes in {name} from {start}")
            self.reads += 1

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def until_more(self, count: int) -> None:
        reached = self.reads + count
        until(lambda: self.reads >= reached or self.errors, "readers go on")


def test_a_rolling_restart_costs_the_store_nothing(etcd: EtcdServer, tmp_path: Path) -> None:
    with scene(etcd, tmp_path) as it:
        before = it.fetched()
        assert before >= SET_BYTES
        with Readers(it) as readers:
            for worker in it.cluster.workers:
                assert worker.stop() == 0
                readers.until_more(100)  # while it is away
                worker.start()
                it.until_everybody_sees(worker)
                readers.until_more(100)
        assert not readers.errors
        assert it.fetched() - before <= SET_BYTES // 100
        assert it.cluster.total("kara_worker_handover_pages_total") > 0
        for name in (f"page?file={'0' * 32}&index=0", "handover"):
            assert answer_to_a_stranger(it.cluster.workers[0], name) == 401


def answer_to_a_stranger(worker: WorkerProcess, name: str) -> int:
    data = None if "?" in name else b"{}"
    request = urllib.request.Request(f"http://{worker.address}/kara/v1/{name}", data=data)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30).close()
    with refused.value:
        return refused.value.code
