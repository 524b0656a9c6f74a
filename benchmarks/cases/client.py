"""The client against a bare socket loop on the same worker, and against what alluxiofs publishes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter

import requests

from benchmarks.rounds import interleave_calls
from benchmarks.scene import KIB, MIB, Scene, read_url, request_bytes, warm
from benchmarks.table_row import Row, Target
from benchmarks.timing import aligned
from kara_cache.cache_client import CacheClient
from kara_cache.checksum import checksum
from kara_cache.transport import verified_body
from kara_cache.ufs.base import FileInfo

_HEAD = 16 << 10


class BareSocket:
    """The least a client can do: send, receive into the buffer, find the end of the head."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = bytearray(_HEAD)
        self._view = memoryview(self._head)

    def read_into(self, request: bytes, view: memoryview) -> None:
        sock, want = self._socket, len(view)
        sock.sendall(request)
        got = sock.recv_into(self._view)
        while (end := self._head.find(b"\r\n\r\n", 0, got)) < 0:
            got += sock.recv_into(self._view[got:])
        came = got - end - 4
        view[:came] = self._view[end + 4 : got]
        while came < want:
            came += sock.recv_into(view[came:], want - came, socket.MSG_WAITALL)


def starts(info: FileInfo, length: int, count: int = 256) -> list[int]:
    """Places to read from: within one page each, whole pages where `length` is a page."""
    chosen = Random(length)
    if length == MIB:
        return [chosen.randrange(info.size // MIB) * MIB for _ in range(count)]
    return [chosen.randrange(info.size // MIB) * MIB + chosen.randrange(MIB - length) for _ in range(count)]


def run(scene: Scene) -> list[Row]:
    with scene.clients_pinned(), scene.client() as client:
        path = f"/near/{scene.names['big'][0]}"
        warm(client, [path])
        info = client.info(path)
        fills = client.metrics.worker_reads["fill"]
        rows = [*_bare(scene, client, info), *_alluxiofs(scene, client, info)]
        if client.metrics.worker_reads["fill"] != fills:
            raise RuntimeError("a read of the warm file went to the store: these numbers are not of hits")
        return [*rows, _verified(client, info), _emptied(scene, client)]


def _ours(client: CacheClient, info: FileInfo, length: int) -> Callable[[int], object]:
    places, view = starts(info, length), aligned(length)
    return lambda number: client.read_into(info, places[number % len(places)], view)


def _bare(scene: Scene, client: CacheClient, info: FileInfo) -> list[Row]:
    rows = []
    for length, label in ((4 * KIB, "4 KiB"), (MIB, "1 MiB")):
        bare, view = BareSocket(scene.worker.port), aligned(length)
        asked = [request_bytes(info, start, length) for start in starts(info, length)]

        def raw(
            number: int, bare: BareSocket = bare, asked: Sequence[bytes] = asked, view: memoryview = view
        ) -> None:
            bare.read_into(asked[number % len(asked)], view)

        rounds = interleave_calls(
            {"client": _ours(client, info, length), "raw": raw}, scene.settings, scene.meter
        )
        detail = {
            f"{name} {metric} us": rounds.median(name, metric)
            for name in ("client", "raw")
            for metric in ("p50", "p99", "mean")
        }
        if length == MIB:
            values = rounds.ratios("raw", "client", "mean")
            what, target = f"CacheClient.read_into / bare socket loop, {label}, throughput", Target(0.8)
        else:
            values = rounds.ratios("client", "raw", "p50")
            what, target = (
                f"CacheClient.read_into / bare socket loop, {label}, p50",
                Target(1.6, at_least=False),
            )
        rows.append(Row(f"client_bare_{label}", what, values, target, detail=detail).of(rounds))
    return rows


def _alluxiofs(scene: Scene, client: CacheClient, info: FileInfo) -> list[Row]:
    """alluxiofs 1.0.17 reads a range by `requests.get(url)` and `response.content`, a connection for each
    call (AlluxioClient._all_file_range_generator); it reads whole pages through a Session (_read_page)."""
    rows = []
    for length, label in ((4 * KIB, "4 KiB"), (MIB, "1 MiB")):
        urls = [read_url(scene.worker, info, start, length) for start in starts(info, length)]
        session = requests.Session()
        calls = {
            "client": _ours(client, info, length),
            "get": lambda number, urls=urls: _content(requests.get(urls[number % len(urls)])),
            "session": lambda number, urls=urls, session=session: _content(
                session.get(urls[number % len(urls)])
            ),
        }
        rounds = interleave_calls(calls, scene.settings, scene.meter)
        for name, how in (("get", "requests.get a call, as alluxiofs"), ("session", "one requests.Session")):
            values = rounds.ratios(name, "client", "mean")
            detail = {f"{n} {m} us": rounds.median(n, m) for n in ("client", name) for m in ("p50", "mean")}
            what = f"{how} / CacheClient.read_into, {label}, mean time"
            rows.append(Row(f"client_{name}_{label}", what, values, Target(5), detail=detail).of(rounds))
        session.close()
    return rows


def _content(response: requests.Response) -> bytes:
    response.raise_for_status()
    return response.content


def _verified(client: CacheClient, info: FileInfo) -> Row:
    """Counts what the client verifies, so that the rows above are of reads with checksums on."""
    sums, reads = 0, 0

    def counted(data: memoryview) -> int:
        nonlocal sums
        sums += 1
        return checksum(data)

    verified_body.checksum, before = counted, verified_body.checksum
    try:
        for length in (4 * KIB, MIB):
            read = _ours(client, info, length)
            for number in range(100):
                read(number)
                reads += 1
    finally:
        verified_body.checksum = before
    return Row("control_sums", "control: checksums compared for each read", [sums / reads], Target(1))


def _emptied(scene: Scene, client: CacheClient) -> Row:
    """The case at 4 KiB, pages dropped before each read: slower, or the rest is no cache."""
    path = f"/near/{scene.names['big'][1]}"
    info = client.info(path)
    view, places = aligned(4 * KIB), starts(info, 4 * KIB)
    warm(client, [path])
    fills = client.metrics.worker_reads["fill"]

    def cold(number: int) -> float:
        client.free(path)
        return _timed(lambda: client.read_into(info, places[number % len(places)], view))

    times = sorted(cold(number) for number in range(20))
    filled = client.metrics.worker_reads["fill"] - fills
    if filled != 20:
        raise RuntimeError(f"{filled} of 20 reads of a freed file went to the store")
    warm(client, [path])
    warmed = sorted(
        _timed(lambda number=number: client.read_into(info, places[number], view)) for number in range(200)
    )
    values = [times[10] / warmed[100]]
    detail = {"emptied p50 us": times[10] * 1e6, "warm p50 us": warmed[100] * 1e6}
    return Row(
        "control_emptied", "control: 4 KiB read, cache emptied / warm, p50", values, Target(2), detail=detail
    )


def _timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began
