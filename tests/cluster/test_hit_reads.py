"""Hits, spoken to a real worker byte by byte: the quick way answers as the general one, while it may."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from main_job import client_of
from pages_on_disk import pages_on_disk
from scripted_worker import FixedMembership

from kara_cache.cache_client import CacheClient
from kara_cache.checksum import checksum
from kara_cache.config import ClientConfig
from kara_cache.membership.base import WorkerInfo
from kara_cache.transport.worker_link import boot_id
from kara_cache.wire import read_target
from kara_worker.testing.cluster import LocalCluster

MIB = 1 << 20
SMALL, MIDDLE, LARGE = os.urandom(5000), os.urandom(20_000), os.urandom(2 * MIB + 77)
WAIT_S = 20.0
AGAIN = 5  # times the same request: an answer is kept from its second time on


class Talk:
    """One connection."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.sock = socket.create_connection(("127.0.0.1", cluster.workers[0].port), timeout=WAIT_S)
        self._held = b""

    def ask(self, *targets: str) -> list[tuple[dict[str, str], bytes]]:
        """The answers to requests that are sent at once."""
        self.sock.sendall(
            b"".join(f"GET {target} HTTP/1.1\r\nHost: w\r\n\r\n".encode() for target in targets)
        )
        return [self.answer() for _ in targets]

    def answer(self) -> tuple[dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._held:
            self._receive()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 OK"
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        if "content-length" not in fields:
            return fields, self._chunked()
        length = int(fields["content-length"])
        while len(self._held) < length:
            self._receive()
        body, self._held = self._held[:length], self._held[length:]
        return fields, body

    def _chunked(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._held:
                self._receive()
            size, _, self._held = self._held.partition(b"\r\n")
            while len(self._held) < int(size, 16) + 2 or (size == b"0" and b"\r\n\r\n" not in self._held):
                self._receive()
            if size == b"0":
                self._held = self._held.partition(b"\r\n\r\n")[2]
                return body
            body += self._held[: int(size, 16)]
            self._held = self._held[int(size, 16) + 2 :]

    def _receive(self) -> None:
        data = self.sock.recv(1 << 20)
        assert data, "closed by the worker"
        self._held += data


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    files, home = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("cluster")
    (files / "small").write_bytes(SMALL)
    (files / "middle").write_bytes(MIDDLE)
    (files / "large").write_bytes(LARGE)
    mounts = {"m": {"url": f"file://{files}", "freshness": "immutable"}}
    with LocalCluster(1, mounts=mounts, directory=home) as cluster:
        yield cluster


@pytest.fixture
def talk(cluster: LocalCluster) -> Iterator[Talk]:
    talk = Talk(cluster)
    yield talk
    talk.sock.close()


def target(cluster: LocalCluster, name: str, start: int, length: int) -> str:
    """Of a read that is a hit from now on."""
    with client_of(cluster) as client:
        info = client.info(f"/m/{name}")
    made = f"{read_target(info.path, info.version, info.size, keep=True)}&start={start}&length={length}"
    talk, deadline = Talk(cluster), time.monotonic() + WAIT_S
    while talk.ask(made)[0][0]["x-kara-source"] != "hit":
        assert time.monotonic() < deadline, "the page does not stay"
    talk.sock.close()
    return made


def hits(cluster: LocalCluster) -> int:
    with client_of(cluster) as client:
        (status,) = client.worker_status()
    return int(status["page_reads"]["hit"])


@pytest.mark.parametrize(
    ("name", "start", "length"),
    [
        ("small", 0, 5000),
        ("small", 17, 300),
        ("small", 4990, 999),
        ("middle", 0, 20_000),
        ("middle", 1, 19_999),
        ("large", 100, 4096),
        ("large", 16_000, 20_000),
        ("large", 0, MIB),
        ("large", 1, MIB - 1),
        ("large", MIB - 10, 20),
        ("large", 0, 2 * MIB + 77),
        ("large", 2 * MIB, 77),
    ],
)
def test_the_same_request_again_has_the_same_answer(
    cluster: LocalCluster, talk: Talk, name: str, start: int, length: int
) -> None:
    data = {"small": SMALL, "middle": MIDDLE, "large": LARGE}[name][start : start + length]
    pieces = [LARGE[max(start, at) : min(start + length, at + MIB)] for at in range(0, len(LARGE), MIB)]
    sums = [checksum(data)] if name != "large" else [checksum(piece) for piece in pieces if piece]
    made, before = target(cluster, name, start, length), hits(cluster)
    for _ in range(AGAIN):
        ((fields, body),) = talk.ask(made)
        assert body == data
        assert [int(value, 16) for value in fields["x-kara-sum"].split(",")] == sums
    assert hits(cluster) - before == AGAIN * len(sums)


def test_requests_sent_at_once_are_answered_in_order(cluster: LocalCluster, talk: Talk) -> None:
    made = [target(cluster, "large", at, 1000) for at in (0, 500, MIB - 500)]
    made.append(target(cluster, "large", 0, MIB))
    want = [LARGE[:1000], LARGE[500:1500], LARGE[MIB - 500 : MIB + 500], LARGE[:MIB]]
    for _ in range(AGAIN):
        assert [body for _, body in talk.ask(*made * 3)] == want * 3


def test_readers_that_ask_at_the_same_moment_get_their_own(cluster: LocalCluster) -> None:
    places = [at * 1000 for at in range(40)]
    made = [target(cluster, "large", at, 900) for at in places]
    with ExitStack() as stack:
        talks = [Talk(cluster) for _ in made]
        for talk in talks:
            stack.callback(talk.sock.close)
        for _ in range(AGAIN):
            for talk, one in zip(talks, made, strict=True):
                talk.sock.sendall(f"GET {one} HTTP/1.1\r\nHost: w\r\n\r\n".encode())
            assert [talk.answer()[1] for talk in talks] == [LARGE[at : at + 900] for at in places]


def test_a_reader_that_takes_its_time_gets_every_answer(cluster: LocalCluster, talk: Talk) -> None:
    made = target(cluster, "large", 0, 2 * MIB + 77)
    request = f"GET {made} HTTP/1.1\r\nHost: w\r\n\r\n".encode()
    for _ in range(8):  # more than the kernel's buffers hold: the worker has to wait in the middle of one
        talk.sock.sendall(request)
    assert select.select([talk.sock], [], [], WAIT_S)[0]
    for _ in range(8):
        assert talk.answer()[1] == LARGE


def test_an_answer_does_not_outlive_its_page(cluster: LocalCluster, talk: Talk) -> None:
    made = target(cluster, "small", 0, 5000)
    for _ in range(AGAIN):
        assert talk.ask(made)[0][0]["x-kara-source"] == "hit"
    with client_of(cluster) as client:
        assert client.free("/m/small")[0] == 1
    ((fields, body),) = talk.ask(made)
    assert (fields["x-kara-source"], body) == ("fill", SMALL)


def test_an_answer_from_memory_is_right_when_the_disk_is_not(cluster: LocalCluster, talk: Talk) -> None:
    made = target(cluster, "small", 0, 5000)
    for _ in range(AGAIN):
        talk.ask(made)
    for page in pages_on_disk(cluster.workers[0].page_dir):
        if page.read() == SMALL:
            page.flip_data(100)
    for _ in range(AGAIN):
        assert talk.ask(made)[0][1] == SMALL
    query = made.partition("?")[2]
    url = f"http://{cluster.workers[0].address}/kara/v1/verify?{query}"
    with urlopen(f"{url}", data=b"", timeout=WAIT_S) as answer:
        assert json.load(answer) == {"pages": 1, "dropped": 1}
    ((fields, body),) = talk.ask(made)
    assert (fields["x-kara-source"], body) == ("fill", SMALL)


def test_a_request_that_asks_for_the_end_gets_it(cluster: LocalCluster, talk: Talk) -> None:
    made = target(cluster, "small", 0, 5000)
    for _ in range(AGAIN):
        talk.ask(made)
    talk.sock.sendall(f"GET {made} HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n".encode())
    assert talk.answer()[1] == SMALL
    assert talk.sock.recv(1) == b""


def member(cluster: LocalCluster) -> WorkerInfo:
    """The worker as one on this host."""
    worker = cluster.workers[0]
    return WorkerInfo(
        worker.id, "127.0.0.1", worker.port, socket_path=str(worker.ready["socket_path"]), boot_id=boot_id()
    )


def test_a_small_read_on_the_same_host_brings_its_page_along(cluster: LocalCluster) -> None:
    for start in (0, MIB):
        target(cluster, "large", start, 10)
    with CacheClient(ClientConfig(), membership=FixedMembership(member(cluster))) as client:
        info, before = client.info("/m/large"), hits(cluster)
        assert client.read(info, MIB + 500, 4096) == LARGE[MIB + 500 : MIB + 4596]
        assert hits(cluster) - before == 1
        for start in (MIB, MIB + 70_000, 2 * MIB - 4096):  # the page is at hand now
            assert client.read(info, start, 4096) == LARGE[start : start + 4096]
        assert hits(cluster) - before == 1
        assert client.metrics.reads == {"worker": 0, "local": 4, "store": 0, "error": 0}
        assert client.read(info, 77, 4096) == LARGE[77 : 77 + 4096]
        assert hits(cluster) - before == 2


def test_a_page_that_is_damaged_after_it_came_along_is_noticed(cluster: LocalCluster) -> None:
    target(cluster, "small", 0, 10)
    with CacheClient(ClientConfig(), membership=FixedMembership(member(cluster))) as client:
        info = client.info("/m/small")
        assert client.read(info, 4500, 50) == SMALL[4500:4550]
        for page in pages_on_disk(cluster.workers[0].page_dir):
            if page.read() == SMALL:
                page.flip_data(100)
        assert client.read(info, 90, 20) == SMALL[90:110]
        assert client.metrics.fallbacks == {"corrupt": 1}


def test_a_page_is_passed_only_where_it_can_be(cluster: LocalCluster, talk: Talk) -> None:
    """A reader on another host that asks for it gets the bytes alone."""
    made = target(cluster, "small", 0, 100)
    for _ in range(AGAIN):
        ((fields, body),) = talk.ask(f"{made}&pass=1")
        assert body == SMALL[:100]
        assert "x-kara-pass" not in fields


def test_whole_pages_go_out_by_copy_or_by_sendfile_as_configured(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "middle").write_bytes(MIDDLE)
    mounts = {"m": {"url": f"file://{tmp_path}/files", "freshness": "immutable"}}
    limits = [{"sendfile_above_bytes": limit} for limit in (0, 64 << 10)]
    with LocalCluster(2, mounts=mounts, directory=tmp_path / "home", each=limits) as pair:
        with client_of(pair) as client:
            told = [status["sendfile_above_bytes"] for status in client.worker_status()]
        assert sorted(told) == [0, 64 << 10]
        for worker in pair.workers:
            info = WorkerInfo(worker.id, "127.0.0.1", worker.port)
            with CacheClient(ClientConfig(local_reads=False), membership=FixedMembership(info)) as client:
                file = client.info("/m/middle")
                for _ in range(AGAIN):
                    assert client.read(file, 0, len(MIDDLE)) == MIDDLE


def test_what_was_measured_is_told(cluster: LocalCluster) -> None:
    with client_of(cluster) as client:
        (status,) = client.worker_status()
    assert 0 <= status["sendfile_above_bytes"] <= 64 << 10


def test_pages_that_left_memory_are_read_again_in_the_order_of_their_requests(
    cluster: LocalCluster, talk: Talk
) -> None:
    """Where the file system has a disk: on tmpfs nothing leaves."""
    wanted = [("large", 0, MIB), ("large", MIB + 4000, 9000), ("middle", 0, 20_000), ("large", 5, 2 * MIB)]
    targets = [target(cluster, *one) for one in wanted]
    data = {"large": LARGE, "middle": MIDDLE}
    for page in pages_on_disk(cluster.workers[0].page_dir):
        fd = os.open(page.path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    answers = talk.ask(*targets)
    assert [body for _, body in answers] == [data[name][at : at + length] for name, at, length in wanted]
