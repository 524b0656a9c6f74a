"""Views of pages of a worker on the same host: no copy where there need be none, and the right bytes."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scripted_worker as script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_worker import Answer, Behaviour, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.page import PageHeader, PageId
from kara_cache.same_host import page_views
from kara_cache.same_host.held_page import HeldPage
from kara_cache.same_host.local_pages import RENEW_S

PAGE = 64 << 10
CONTENT = os.urandom(9 * PAGE + 777)
PATH = "/m/f"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[ScriptedWorker]:
    with ScriptedWorker({PATH: CONTENT}, unix_dir=tmp_path) as made:
        yield made


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[CacheClient]:
    config = ClientConfig(stall_timeout_s=script.WAIT_S)
    with CacheClient(config, membership=FixedMembership(worker.member())) as made:
        made.read(made.info(PATH), 9 * PAGE, 10)  # now it knows that the worker is on this host
        yield made


def is_mapped(view: memoryview) -> bool:
    return isinstance(view.obj, mmap.mmap)


def test_views_of_a_page_are_one_piece_of_memory(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    first = client.view(file, 10, 1000)
    asked = len(worker.requests)
    again = client.view(file, 0, PAGE)
    assert first == CONTENT[10:1010]
    assert again == CONTENT[:PAGE]
    assert first.obj is again.obj
    assert is_mapped(first)
    assert first.readonly
    assert len(worker.requests) == asked
    assert client.metrics.read_bytes == {"worker": 0, "local": 10 + 1000 + PAGE, "store": 0}


@given(st.integers(0, len(CONTENT) + 5), st.integers(0, 3 * PAGE))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_view_is_right_whether_it_can_be_mapped_or_not(
    client: CacheClient, start: int, length: int
) -> None:
    view = client.view(client.info(PATH), start, length)
    want = CONTENT[start : start + length]
    assert view == want
    assert view.readonly
    assert is_mapped(view) == (len(want) > 0 and start % PAGE + len(want) <= PAGE)


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (5, -1)])
def test_what_is_no_range_is_refused(client: CacheClient, start: int, length: int) -> None:
    file = client.info(PATH)
    client.view(file, 0, 10)
    with pytest.raises(ValueError, match=str(PATH)):
        client.view(file, start, length)


def test_a_view_outlives_page_worker_and_client(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    view = client.view(file, 2 * PAGE + 5, 4000)[1000:]
    worker.refuse()
    client.close()
    assert client._local.pages == {}
    assert view == CONTENT[2 * PAGE + 1005 : 2 * PAGE + 4005]


def test_descriptors_and_memory_go_with_the_last_view(client: CacheClient, worker: ScriptedWorker) -> None:
    file = client.info(PATH)
    client.read(file, 3 * PAGE, 10)
    before = worker.open_descriptors()
    view = client.view(file, 3 * PAGE, 10)
    assert worker.open_descriptors() == before + 1, "that of the mapping"
    client._local.pages.popitem()
    assert view == CONTENT[3 * PAGE : 3 * PAGE + 10]
    assert worker.open_descriptors() == before, "that of the page is closed"
    del view
    assert worker.open_descriptors() == before - 1


def test_few_pages_stay_mapped_and_none_that_is_looked_at_goes(
    client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_views, "MAPPED_PAGES", 3)
    file = client.info(PATH)
    views = [client.view(file, index * PAGE, 100) for index in range(9)]
    assert all(is_mapped(view) for view in views)
    assert [view == CONTENT[index * PAGE : index * PAGE + 100] for index, view in enumerate(views)] == [
        True
    ] * 9
    assert repr(client._views) == "<PageViews of 3 pages>"
    assert sum(page.memory is not None for page in client._local.pages.values()) == 3
    client._views._limit_bytes = PAGE
    client.view(file, 0, 100)
    assert repr(client._views) == "<PageViews of 1 pages>"


def test_a_page_is_compared_again_when_it_is_asked_for_again(
    client: CacheClient, worker: ScriptedWorker
) -> None:
    file, now = client.info(PATH), client._local.now
    old = client.view(file, 0, 100)
    client._local.now = lambda: now() + RENEW_S + 1
    new = client.view(file, 0, 100)
    assert old == new == CONTENT[:100]
    assert is_mapped(new)
    assert new.obj is not old.obj


def passing(build: Callable[[bytes], bytes]) -> Behaviour:
    """Passes a page whose data are what `build` makes of the right ones."""

    def behave(answer: Answer) -> None:
        query = answer.request.query
        index = int(query["first"])
        data = CONTENT[index * PAGE : (index + 1) * PAGE]
        identity = script.file_id(query["path"], query["version"], int(query["size"]))
        header = PageHeader.of(PageId(identity, index), data, page_bytes=PAGE, created_ns=1)
        with script.TemporaryFile(buffering=0) as file:
            file.write(header.encode() + build(data))
            body = b'{"pages": [%d]}' % index
            message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            socket.send_fds(answer.sock, [message], [file.fileno()])

    return behave


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:], id="a bit"),
        pytest.param(lambda data: data[: PAGE // 2], id="cut"),
    ],
)
def test_a_wrong_page_is_never_mapped(
    client: CacheClient, worker: ScriptedWorker, build: Callable[[bytes], bytes]
) -> None:
    file = client.info(PATH)
    worker.plan("GET", "/pages", passing(build))
    view = client.view(file, 4 * PAGE, 100)
    assert view == CONTENT[4 * PAGE : 4 * PAGE + 100]
    assert client.metrics.fallbacks == {"corrupt": 1}
    assert worker.count("POST", "/verify") == 1
    assert is_mapped(client.view(file, 4 * PAGE, 100)), "the next one is right"


def as_of_a_segment(client: CacheClient) -> HeldPage:
    """The page that is held: from now on as one of a segment, which is cut where nobody has it locked."""
    (page,) = (page for key, page in client._local.pages.items() if key[2] == 1)
    page.in_own_file = False
    return page


def is_locked(page: HeldPage) -> bool:
    fd = os.open(f"/proc/self/fd/{page.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_a_segment_is_locked_while_a_page_of_it_is_mapped(client: CacheClient) -> None:
    file = client.info(PATH)
    client.read(file, PAGE, 10)
    page = as_of_a_segment(client)
    view = client.view(file, PAGE + 5, 100)
    assert view == CONTENT[PAGE + 5 : PAGE + 105]
    assert is_mapped(view)
    assert is_locked(page)
    client._local.pages.clear()
    assert page.memory is not None
    page.memory = None
    assert is_locked(page), "the view is still there"
    if not (child := os.fork()):
        os._exit(0 if is_locked(page) and view == CONTENT[PAGE + 5 : PAGE + 105] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del view
    assert not is_locked(page)


@pytest.mark.parametrize("cut", [0, PAGE // 2])
def test_a_segment_that_was_cut_or_is_about_to_be_is_not_mapped(client: CacheClient, cut: int) -> None:
    file = client.info(PATH)
    client.read(file, PAGE, 10)
    page = as_of_a_segment(client)
    fd = os.open(f"/proc/self/fd/{page.fd}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    about_to_be = client.view(file, PAGE, 100)
    os.ftruncate(fd, cut)
    os.close(fd)
    was = client.view(file, PAGE + PAGE // 2, 100)
    assert about_to_be == CONTENT[PAGE : PAGE + 100]
    assert was == CONTENT[PAGE + PAGE // 2 :][:100]
    assert about_to_be.readonly
    assert not is_mapped(about_to_be)
    assert not is_mapped(was)


def test_few_segments_stay_mapped(client: CacheClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_views, "MAPPED_SEGMENTS", 2)
    file = client.info(PATH)
    client.read(file, 0, 8 * PAGE)
    for page in client._local.pages.values():
        page.in_own_file = False  # each in a file of its own, as a segment of its own
    views = [client.view(file, index * PAGE, 100) for index in range(8)]
    assert [bytes(view) for view in views] == [CONTENT[at * PAGE : at * PAGE + 100] for at in range(8)]
    assert repr(client._views) == "<PageViews of 2 pages>"
