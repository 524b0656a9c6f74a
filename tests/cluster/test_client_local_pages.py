"""Pages of a worker on the same host, read through descriptors: few requests, every byte verified."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import scripted_worker as script
from hypothesis import given
from hypothesis import strategies as st
from scripted_worker import Answer, Behaviour, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.cached_file import CachedFile
from kara_cache.config import ClientConfig
from kara_cache.errors import AccessDenied, PageCorrupt
from kara_cache.page import PageHeader, PageId
from kara_cache.read_stages import Marks
from kara_cache.same_host.local_pages import RENEW_S, HeldPage, LocalPages
from kara_cache.same_host.local_ranges import Piece, read_pieces
from kara_cache.transport.worker_client import PassedPage, WorkerClient
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.base import FileInfo

FAR_S = 30.0
PAGE = 64 << 10
CONTENT = os.urandom(40 * PAGE + 777)
PATH = "/m/f"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ScriptedWorker]:
    with ScriptedWorker({PATH: CONTENT}, unix_dir=tmp_path) as made:
        yield made


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[CacheClient]:
    with CacheClient(
        ClientConfig(stall_timeout_s=FAR_S), membership=FixedMembership(worker.member())
    ) as made:
        yield made


def test_a_page_is_asked_for_once_and_then_read_without_a_request(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file = client.info(PATH)
    for start in (0, 100, PAGE - 10, 5):
        assert client.read(file, start, 10) == CONTENT[start : start + 10]
    assert worker.count("GET", "/pages") == 1
    assert worker.count("GET", "/read") == 0
    assert client.metrics.reads == {"worker": 0, "local": 4, "store": 0, "error": 0}
    assert client.metrics.read_bytes == {"worker": 0, "local": 40, "store": 0}


def test_a_random_reader_asks_for_one_page_a_sequential_one_for_a_run(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file = client.info(PATH)
    client.read(file, 20 * PAGE, 10)
    client.read(file, 3 * PAGE, 10)
    client.read(file, 4 * PAGE, 10)
    client.read(file, 5 * PAGE, 36 * PAGE)
    counts = [request.query["count"] for request in worker.requests if request.name == "/pages"]
    assert counts == ["1", "1", "37"]


def test_a_page_that_is_not_there_is_filled_by_a_normal_read(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    worker.cached = {0, 1, 3}
    file = client.info(PATH)
    assert client.read(file, 0, 4 * PAGE) == CONTENT[: 4 * PAGE]
    (request,) = [request for request in worker.requests if request.name == "/read"]
    assert (request.query["start"], request.query["length"]) == (str(2 * PAGE), str(2 * PAGE))
    assert client.metrics.reads["worker"] == 1
    assert client.metrics.read_bytes == {"worker": 2 * PAGE, "local": 2 * PAGE, "store": 0}


def test_held_pages_outlive_their_worker(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 0, PAGE)
    worker.refuse()
    assert client.read(file, 5, 1000) == CONTENT[5:1005]
    assert client.metrics.fallbacks == {}


def test_a_batch_takes_the_pages_it_needs_and_then_makes_no_request(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file = client.info(PATH)
    client.read(file, 0, PAGE)
    for _ in range(3):
        got = client.read_ranges(
            [(file, 10, 5), (file, 30 * PAGE - 3, 5), (file, 20, 5), (file, 0, 9 * PAGE)]
        )
        assert [bytes(view) for view in got] == [
            CONTENT[10:15], CONTENT[30 * PAGE - 3 : 30 * PAGE + 2], CONTENT[20:25], CONTENT[: 9 * PAGE]
        ]  # fmt: skip
    assert worker.count("POST", "/ranges") == 0
    assert worker.count("GET", "/pages") == 2  # of the read, and a run of all that the batch lacked
    assert client.metrics.reads == {"worker": 0, "local": 13, "store": 0, "error": 0}


def test_pages_that_a_worker_has_not_got_cost_a_batch_few_requests(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    worker.cached = {0, 39}
    file = client.info(PATH)
    client.read(file, 0, 1)
    indices = range(0, 40, 3)
    for _ in range(3):
        got = client.read_ranges([(file, index * PAGE + 7, 9) for index in indices])
        assert got == [CONTENT[index * PAGE + 7 : index * PAGE + 16] for index in indices]
    assert worker.count("POST", "/ranges") == 3
    assert worker.count("GET", "/pages") == 4
    assert client.metrics.reads["local"] == 7


def test_batches_stop_asking_for_pages_when_no_more_may_be_held(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    client._local._limit = 10
    file = client.info(PATH)
    client.read(file, 0, 1)
    before = worker.open_descriptors()
    for _ in range(3):
        got = client.read_ranges([(file, index * PAGE, 9) for index in range(40)])
        assert got == [CONTENT[index * PAGE : index * PAGE + 9] for index in range(40)]
    assert worker.open_descriptors() == before + 9
    assert client.metrics.reads == {"worker": 90, "local": 31, "store": 0, "error": 0}


def passing(build: Callable[[PageHeader, bytes], bytes]) -> Behaviour:
    """Passes a page file made by `build` from the right header and data."""

    def behave(answer: Answer) -> None:
        query = answer.request.query
        index = int(query["first"])
        data = CONTENT[index * PAGE : (index + 1) * PAGE]
        identity = script.file_id(query["path"], query["version"], int(query["size"]))
        header = PageHeader.of(PageId(identity, index), data, page_bytes=PAGE, created_ns=1)
        with script.TemporaryFile(buffering=0) as file:
            file.write(build(header, data))
            body = b'{"pages": [%d]}' % index
            message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            socket.send_fds(answer.sock, [message], [file.fileno()])

    return behave


def _other(header: PageHeader, **changes: object) -> bytes:
    values = {name: getattr(header, name) for name in PageHeader.__slots__}
    return PageHeader(**{**values, **changes}).encode()  # type: ignore[arg-type]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda header, data: bytes(4096) + data, id="no header"),
        pytest.param(lambda header, data: header.encode()[:100], id="cut in the header"),
        pytest.param(lambda header, data: _flipped(header.encode(), 90) + data, id="a bit of the header"),
        pytest.param(
            lambda header, data: _other(header, page=PageId(b"x" * 16, header.page.index)) + data,
            id="another file",
        ),
        pytest.param(
            lambda header, data: _other(header, page=PageId(header.page.file_id, 7)) + data, id="another page"
        ),
        pytest.param(lambda header, data: _other(header, page_bytes=2 * PAGE) + data, id="another page size"),
    ],
)
def test_a_descriptor_of_something_else_is_not_used(
    client: CacheClient, worker: ScriptedWorker, build: Callable[[PageHeader, bytes], bytes]
) -> None:
    file = client.info(PATH)
    before = worker.open_descriptors()
    worker.plan("GET", "/pages", passing(build))
    assert client.read(file, 3 * PAGE + 10, 1000) == CONTENT[3 * PAGE + 10 : 3 * PAGE + 1010]
    assert worker.count("GET", "/read") == 1
    assert worker.open_descriptors() == before


def _bit_flipped(header: PageHeader, data: bytes) -> bytes:
    return header.encode() + _flipped(data, 20)


def _cut(header: PageHeader, data: bytes) -> bytes:
    return header.encode() + data[: PAGE // 2]


@pytest.mark.parametrize(
    ("build", "start", "length"),
    [
        pytest.param(_bit_flipped, 0, PAGE, id="bit, whole page"),
        pytest.param(_bit_flipped, 10, 100, id="bit, part"),
        pytest.param(_bit_flipped, 10, PAGE - 10, id="bit, long part"),
        pytest.param(_cut, 0, PAGE, id="cut, whole page"),
        pytest.param(_cut, PAGE // 2 - 10, 100, id="cut, part"),
        pytest.param(_cut, 10, PAGE - 10, id="cut, long part"),
    ],
)
def test_wrong_bytes_are_reported_and_read_another_way(
    client: CacheClient,
    worker: ScriptedWorker,
    build: Callable[[PageHeader, bytes], bytes],
    start: int,
    length: int,
) -> None:
    file = client.info(PATH)
    worker.plan("GET", "/pages", passing(build))
    assert client.read(file, start, length) == CONTENT[start : start + length]
    assert client.metrics.fallbacks == {"corrupt": 1}
    assert worker.count("POST", "/verify") == 1
    assert worker.count("GET", "/read") == 1


def test_a_page_that_rots_while_it_is_held_is_found_out(
    client: CacheClient, worker: ScriptedWorker, tmp_path: Path
) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    ((_, page),) = client._local.pages.items()
    with open(f"/proc/self/fd/{page.fd}", "r+b", buffering=0) as raw:
        raw.seek(4096 + 5)
        raw.write(bytes([CONTENT[5] ^ 0xFF]))
    assert client.read(file, 0, 10) == CONTENT[:10]
    assert client.metrics.fallbacks == {"corrupt": 1}
    assert worker.count("POST", "/verify") == 1


def test_a_batch_finds_out_a_page_that_rots_while_it_is_held(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file = client.info(PATH)
    client.read(file, 0, 10)
    ((_, page),) = client._local.pages.items()
    with open(f"/proc/self/fd/{page.fd}", "r+b", buffering=0) as raw:
        raw.seek(4096 + 20_000)
        raw.write(bytes([CONTENT[20_000] ^ 0xFF]))
    wanted = [(5, 10), (19_990, 20), (1000, 40_000), (60_000, 100)]
    got = client.read_ranges([(file, start, length) for start, length in wanted])
    assert [bytes(view) for view in got] == [CONTENT[start : start + length] for start, length in wanted]
    assert client.metrics.fallbacks == {"corrupt": 1}
    assert client.metrics.reads["local"] == 1 + 2


def test_a_worker_that_passes_no_descriptors_is_read_over_its_socket(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    worker.always("GET", "/pages", script.fail(ValueError("descriptors are passed to my uid only")))
    file = client.info(PATH)
    for _ in range(5):
        assert client.read(file, 0, 10) == CONTENT[:10]
    assert worker.count("GET", "/pages") == 1, "it is not asked again at once"
    assert worker.count("GET", "/read") == 5
    assert client.metrics.fallbacks == {}


def test_access_denied_for_pages_leaves_the_decision_to_the_read(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    worker.always("GET", "/pages", script.fail(AccessDenied("no")))
    worker.always("GET", "/read", script.fail(AccessDenied("no")))
    with pytest.raises(AccessDenied):
        client.read(client.info(PATH), 0, 10)


# -- the cache of descriptors alone --------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def link(worker: ScriptedWorker) -> Iterator[WorkerClient]:
    with ExitStack() as stack:
        client = WorkerClient(worker.member(), Transport(5.0, FAR_S, 4))
        stack.callback(client.close)
        client.info(PATH, _soon())
        yield client


def _soon() -> float:
    from time import monotonic

    return monotonic() + FAR_S


def read(local: LocalPages, link: WorkerClient, file: CachedFile, start: int, length: int) -> bytes:
    buffer = bytearray(length)
    count = local.read_into(link, file, start, memoryview(buffer), _soon())
    return bytes(buffer[:count])


def test_pages_are_renewed_so_that_the_worker_sees_their_use(
    worker: ScriptedWorker, link: WorkerClient
) -> None:
    clock = Clock()
    local, file = LocalPages(clock=clock), CachedFile(worker.file(PATH))
    read(local, link, file, 0, 10)
    clock.now += RENEW_S - 1
    read(local, link, file, 0, 10)
    assert worker.count("GET", "/pages") == 1
    clock.now += 2
    assert local.read_held(file, 0, memoryview(bytearray(10))) == 0
    assert read(local, link, file, 0, 10) == CONTENT[:10]
    assert worker.count("GET", "/pages") == 2
    local.close()


def test_descriptors_are_bounded_the_least_used_go_first(worker: ScriptedWorker, link: WorkerClient) -> None:
    local, file = LocalPages(limit=4), CachedFile(worker.file(PATH))
    before = worker.open_descriptors()
    for index in (0, 10, 20, 30):
        read(local, link, file, index * PAGE, 10)
    read(local, link, file, 0, 10)
    read(local, link, file, 40 * PAGE, 10)
    assert repr(local) == "<LocalPages 4 of 4>"
    assert worker.open_descriptors() == before + 4
    held = [local.read_held(file, index * PAGE, memoryview(bytearray(10))) for index in (0, 10, 20, 30, 40)]
    assert held == [10, 0, 10, 10, 10]
    local.close()
    assert worker.open_descriptors() == before


def test_a_descriptor_stays_open_while_a_thread_uses_it(worker: ScriptedWorker, link: WorkerClient) -> None:
    local, file = LocalPages(), CachedFile(worker.file(PATH))
    read(local, link, file, 0, 10)
    ((_, page),) = local.pages.items()
    local.close()
    assert os.pread(page.fd, 5, 4096) == CONTENT[:5]
    fd = page.fd
    del page
    with pytest.raises(OSError):
        os.fstat(fd)


def test_threads_evict_each_others_pages_and_read_right_bytes(
    worker: ScriptedWorker, link: WorkerClient
) -> None:
    local, file, wrong = LocalPages(limit=3), CachedFile(worker.file(PATH)), list[int]()

    def go(seed: int) -> None:
        at = seed
        for _ in range(150):
            at = (at * 7919 + 13) % (40 * PAGE)
            if read(local, link, file, at, 200) != CONTENT[at : at + 200]:
                wrong.append(at)

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FAR_S)
    assert wrong == []
    local.close()


BIG_PAGE = 2 << 20
BIG = os.urandom(BIG_PAGE - 12_345)


def _big() -> tuple[LocalPages, CachedFile]:
    """One page of 2 MiB, held, without a worker: small blocks, so long parts are read around."""
    file = CachedFile(FileInfo("/m/big", len(BIG), "v"))
    raw = script.page_file(PageId(file.file_id, 0), BIG, page_bytes=BIG_PAGE)
    local, fd = LocalPages(), os.dup(raw.fileno())
    raw.close()
    header = PageHeader.decode(os.pread(fd, 4096, 0))
    local.pages[BIG_PAGE, file.file_id, 0] = HeldPage(fd, header, float("inf"))
    local.page_sizes = (BIG_PAGE,)
    return local, file


HELD, HELD_FILE = _big()


@given(st.integers(0, len(BIG) - 1), st.integers(1, BIG_PAGE))
def test_any_part_of_a_page_is_right(start: int, length: int) -> None:
    want = BIG[start : start + length]
    buffer = bytearray(len(want))
    assert HELD.read_held(HELD_FILE, start, memoryview(buffer)) == len(want)
    assert bytes(buffer) == want


@given(st.lists(st.tuples(st.integers(0, len(BIG) - 1), st.integers(1, BIG_PAGE)), max_size=20))
def test_any_parts_of_a_page_are_right_in_a_batch(wanted: list[tuple[int, int]]) -> None:
    parts = [BIG[start : start + length] for start, length in wanted]
    pieces = [
        Piece(HELD_FILE, start, memoryview(bytearray(len(part))))
        for (start, _), part in zip(wanted, parts, strict=True)
    ]
    left = read_pieces(HELD, pieces)
    assert all(len(piece.view) > 256 << 10 for piece in left)
    assert all(piece.view == part for piece, part in zip(pieces, parts, strict=True) if piece not in left)


@given(st.integers(0, len(BIG) - 1), st.integers(0, len(BIG) - 1), st.integers(1, BIG_PAGE))
def test_a_wrong_byte_under_any_part_is_found(wrong: int, start: int, length: int) -> None:
    local, file = _big()
    ((_, page),) = local.pages.items()
    with open(f"/proc/self/fd/{page.fd}", "r+b", buffering=0) as raw:
        raw.seek(4096 + wrong)
        raw.write(bytes([BIG[wrong] ^ 0x10]))
    stop = min(start + length, len(BIG))
    first, last = page.header.cover(start, stop)
    buffer = bytearray(stop - start)
    if first <= wrong < last or stop - start == len(BIG):
        with pytest.raises(PageCorrupt):
            local.read_held(file, start, memoryview(buffer))
    else:
        local.read_held(file, start, memoryview(buffer))
        assert bytes(buffer) == BIG[start:stop]


def test_descriptors_do_not_leak_into_programs_that_are_started(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    client.read(client.info(PATH), 0, 30 * PAGE)
    program = "import os; print(len(os.listdir('/proc/self/fd')))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=FAR_S, close_fds=False, check=True
    )
    assert int(done.stdout) < 10


# -- pages that come along with the first read ----------------------------------------------------------


class Passing:
    """A worker that passes each page along with the bytes that are asked for."""

    def __init__(self) -> None:
        self.link = SimpleNamespace(page_bytes=PAGE, passes_pages=True)
        self.no_descriptors_until = 0.0
        self.asked: list[int] = []

    def read_passing(
        self, file: CachedFile, start: int, view: memoryview, *, deadline: float, marks: Marks
    ) -> PassedPage:
        self.asked.append(start // PAGE)
        view[:] = CONTENT[start : start + len(view)]
        page, index = CONTENT[start - start % PAGE :][:PAGE], start // PAGE
        with script.page_file(PageId(file.file_id, index), page, page_bytes=PAGE) as raw:
            return PassedPage(index, os.dup(raw.fileno()), None)


def test_pages_are_not_passed_along_where_none_of_them_is_read_again(worker: ScriptedWorker) -> None:
    local, file, passing = LocalPages(limit=8), CachedFile(worker.file(PATH)), Passing()

    def touch(index: int) -> bool:
        """Whether it was read here: from a page at hand, or with one passed along."""
        buffer = memoryview(bytearray(10))
        done = local.read_into(cast(WorkerClient, passing), file, index * PAGE + 5, buffer, _soon(), Marks())
        assert not done or buffer == CONTENT[index * PAGE + 5 :][:10]
        return done > 0

    pages = [
        index * 7 % 40 for index in range(200)
    ]  # each comes back after 40 others, and no two in sequence
    kept, wasted = 2, 64
    assert [touch(index) for index in pages[: kept + wasted]] == [True] * (kept + wasted)
    assert [touch(index) for index in pages[kept + wasted :][:24]] == ([False] * 7 + [True]) * 3
    tried = passing.asked[-1]
    asked = len(passing.asked)
    assert touch(tried)
    assert len(passing.asked) == asked, "it was at hand"
    assert [touch(index) for index in pages[100:120]] == [True] * 20
    local.close()
