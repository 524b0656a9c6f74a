"""A client made before `fork()` works after it: threads, locks, sockets and descriptors of the parent."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import select
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from scripted_worker import FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig, TlsConfig
from kara_cache.membership.base import WorkerInfo

# what this file proves is what Python 3.12 and later warn of
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

FAR_S = 60.0
CONTENT = os.urandom(3_000_000)
PATH = "/m/f"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ScriptedWorker]:
    with ScriptedWorker({PATH: CONTENT}, unix_dir=tmp_path) as made:
        yield made


def client_of(*workers: WorkerInfo, **options: object) -> CacheClient:
    config = ClientConfig(**{"stall_timeout_s": FAR_S, **options})  # type: ignore[arg-type]
    return CacheClient(config, membership=FixedMembership(*workers))


def in_child(work: Callable[[], object], meanwhile: Callable[[], None] = lambda: None) -> object:
    """What `work` returns in a forked child, which then ends without running anything else.

    `meanwhile` runs here, once the child is there.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(FAR_S))
        try:
            answer = json.dumps(work())
        except BaseException as exc:
            answer = json.dumps(repr(exc))
        os.write(write_end, answer.encode())
        os._exit(0)
    os.close(write_end)
    meanwhile()
    answer = b""
    while select.select([read_end], [], [], FAR_S)[0] and (piece := os.read(read_end, 65536)):
        answer += piece
    os.close(read_end)
    os.waitpid(pid, 0)
    assert answer, "the child hung or died"
    return json.loads(answer)


@pytest.mark.parametrize("local", [False, True], ids=["tcp", "same host"])
def test_a_child_reads_right_bytes_on_connections_of_its_own(worker: ScriptedWorker, local: bool) -> None:
    with client_of(worker.member(), local_reads=local) as client:
        file = client.info(PATH)
        assert client.read(file, 0, 1000) == CONTENT[:1000]
        before = worker.accepted

        def work() -> bool:
            return client.read(file, 500_000, 700_000) == CONTENT[500_000:1_200_000]

        assert in_child(work) is True
        assert worker.accepted > before
        used = worker.accepted
        assert client.read(file, 2_000_000, 100) == CONTENT[2_000_000:2_000_100]
        assert worker.accepted == used, "the parent's connection was lost by the fork"


def test_descriptors_of_pages_are_used_on_in_the_child(worker: ScriptedWorker) -> None:
    with client_of(worker.member()) as client:
        file = client.info(PATH)
        client.read(file, 0, 1000)
        asked = worker.count("GET", "/pages")
        assert asked

        def work() -> list[int]:
            assert client.read(file, 10, 50) == CONTENT[10:60]
            return [client.metrics.reads["local"], client.metrics.reads["worker"]]

        assert in_child(work) == [1, 0]
        assert worker.count("GET", "/pages") == asked


def is_mapped(view: memoryview) -> bool:
    return isinstance(view.obj, mmap.mmap)


def test_views_are_good_in_a_child_and_what_it_closes_is_its_own(worker: ScriptedWorker) -> None:
    with client_of(worker.member()) as client:
        file = client.info(PATH)
        client.read(file, 0, 10)  # now it knows that the worker is on this host
        view = client.view(file, 5, 1000)
        asked = worker.count("GET", "/pages")

        def work() -> list[object]:
            same = client.view(file, 2000, 100)
            other = client.view(file, 400_000, 100)  # of a page that the parent has not got
            counted = client.metrics.reads["local"]
            client.close()
            del client._local, client._views
            good = [same == CONTENT[2000:2100], other == CONTENT[400_000:400_100], view == CONTENT[5:1005]]
            return [*good, same.obj is view.obj, is_mapped(other), counted]

        assert in_child(work) == [True, True, True, True, True, 2]
        assert worker.count("GET", "/pages") == asked + 1, "for the page that was not mapped"
        assert view == CONTENT[5:1005]
        assert client.view(file, 2000, 100).obj is view.obj, "the parent's page is as it was"
        assert client.read(file, 7, 100) == CONTENT[7:107]
        assert client.view(file, 400_000, 100) == CONTENT[400_000:400_100]


def test_views_of_a_child_outlive_the_client_of_its_parent(worker: ScriptedWorker) -> None:
    client = client_of(worker.member())
    file = client.info(PATH)
    client.read(file, 0, 10)
    views, (ready, tell) = [client.view(file, 5, 1000)], os.pipe()

    def work() -> list[bool]:
        views.append(client.view(file, 400_000, 500))
        assert os.read(ready, 1)
        views.append(client.view(file, 2000, 500))
        good = [
            view == CONTENT[at : at + len(view)] for view, at in zip(views, (5, 400_000, 2000), strict=True)
        ]
        return [*good, *map(is_mapped, views), client.read(file, 100, 1000) == CONTENT[100:1100]]

    def end_of_the_parents() -> None:
        views.clear()
        client.close()
        assert client._local.pages == {}
        os.write(tell, b".")

    assert in_child(work, end_of_the_parents) == [True] * 7
    os.close(ready)
    os.close(tell)


def test_a_child_counts_from_zero(worker: ScriptedWorker) -> None:
    with client_of(worker.member(), local_reads=False) as client:
        file = client.info(PATH)
        for _ in range(5):
            client.read(file, 0, 10)

        def work() -> dict[str, int]:
            client.read(file, 0, 10)
            return client.metrics.reads

        assert in_child(work) == {"worker": 1, "local": 0, "store": 0, "error": 0}
        assert client.metrics.reads["worker"] == 5


def test_a_reader_with_read_ahead_under_way_goes_on_in_the_child(worker: ScriptedWorker) -> None:
    with client_of(worker.member(), local_reads=False) as client:
        reader = client.open_reader(client.info(PATH))
        for at in range(0, 1_500_000, 250_000):
            reader.read_at(at, 250_000)

        def work() -> bool:
            rest = b"".join(bytes(reader.read_at(at, 250_000)) for at in range(1_500_000, 3_000_000, 250_000))
            return rest == CONTENT[1_500_000:]

        assert in_child(work) is True
        assert work()
        reader.close()


def test_nothing_in_the_child_waits_for_a_lock_of_the_parents_threads(worker: ScriptedWorker) -> None:
    """Each lock of the client is held by another thread at the moment of the fork."""
    with client_of(worker.member()) as client:
        file = client.info(PATH)
        reader = client.open_reader(file)
        reader.read_at(0, 10)
        locks = [
            client._cluster._building,
            client._local._lock,
            client._views._lock,
            client._metrics._lock,
            client._push._sending,
            client._read_ahead.threads._work,
            client._read_ahead.buffers._lock,
            reader._changed,
        ]
        for one in client._cluster.table().clients.values():
            locks += [pool._lock for pool in (one.link._tcp, one.link._unix) if pool is not None]
        holding, release = threading.Event(), threading.Event()

        def hold() -> None:
            for lock in locks:
                lock.acquire()
            holding.set()
            release.wait(FAR_S)
            for lock in locks:
                lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        assert holding.wait(FAR_S)

        def work() -> bool:
            assert client.info(PATH) == file
            assert client.read(file, 100, 1000) == CONTENT[100:1100]
            assert client.read_ranges([(file, 5, 10)]) == [CONTENT[5:15]]
            assert client.view(file, 5, 10) == CONTENT[5:15]
            parts = [bytes(reader.read_at(at, 100_000)) for at in range(0, 1_000_000, 100_000)]
            assert b"".join(parts) == CONTENT[:1_000_000]
            client.flush_metrics()
            client.close()
            return True

        try:
            assert in_child(work) is True
        finally:
            release.set()
            holder.join(FAR_S)
        reader.close()


@pytest.mark.parametrize(
    "forks", [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_bare_forks_while_other_threads_read(worker: ScriptedWorker, forks: int) -> None:
    with client_of(worker.member(), connections_per_worker=4) as client:
        file, stop, wrong = client.info(PATH), threading.Event(), list[str]()

        def keep_reading(seed: int) -> None:
            at = seed
            with_reader = client.open_reader(file)
            while not stop.is_set():
                at = (at * 48271 + 11) % 2_900_000
                if client.read(file, at, 3000) != CONTENT[at : at + 3000]:
                    wrong.append(f"read at {at}")
                if bytes(with_reader.read_at(at, 70_000)) != CONTENT[at : at + 70_000]:
                    wrong.append(f"reader at {at}")
            with_reader.close()

        threads = [threading.Thread(target=keep_reading, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        failed = []
        for number in range(forks):
            pid = os.fork()
            if pid == 0:
                signal.alarm(int(FAR_S))
                at = number * 2003 % 2_900_000
                # one in ten over a socket of its own, the others from descriptors they inherited
                good = (
                    client.read(file, at, 2000) == CONTENT[at : at + 2000]
                    if number % 10 == 0
                    else (client._local.read_held(client._known(file), at, memoryview(bytearray(2000))) >= 0)
                )
                os._exit(0 if good else 1)
            _, status = os.waitpid(pid, 0)
            if status:
                failed.append((number, status))
        stop.set()
        for thread in threads:
            thread.join(FAR_S)
        assert failed == []
        assert wrong == []


def test_a_child_does_not_say_goodbye_on_the_parents_tls_connection(tmp_path: Path) -> None:
    """What the child closes are its descriptors; a TLS close_notify would end the parent's session."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with ScriptedWorker({PATH: CONTENT}, tls=server) as worker:
        options = {"tls": TlsConfig(ca=str(tmp_path / "ca.pem"))}
        with client_of(worker.member(), **options) as client:
            file = client.info(PATH)

            def work() -> bool:
                good = client.read(file, 0, 300_000) == CONTENT[:300_000]
                client.close()
                return good

            assert in_child(work) is True
            before = worker.accepted
            assert client.read(file, 9, 100_000) == CONTENT[9:100_009]
            assert worker.accepted == before


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_counts_of_worker_processes_are_handed_in_when_they_end(method: str) -> None:
    """As a DataLoader does it: children of multiprocessing end without running atexit."""
    context = multiprocessing.get_context(method)
    with ScriptedWorker({PATH: CONTENT}) as worker:
        config = ClientConfig(worker_hosts=(f"127.0.0.1:{worker.port}",), stall_timeout_s=FAR_S)
        with CacheClient(config) as client:
            client.read(client.info(PATH), 0, 10)
            assert client.flush_metrics()
            worker.pushed.clear()
            processes = [
                context.Process(target=_spawned, args=(client, bytes(CONTENT), start)) for start in (5, 50)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join(FAR_S)
                assert process.exitcode == 0
            pushed = [document["counters"]["reads"] for document in worker.pushed]
            assert pushed == [{"worker": 1}, {"worker": 1}]


def _spawned(client: CacheClient, content: bytes, start: int) -> None:
    file = client.info(PATH)
    assert client.read(file, start, 100) == content[start : start + 100]
