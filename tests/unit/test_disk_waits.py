"""Bytes that a disk still has to deliver: who waits, who sends, and who closes what."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kara_cache.page import HEADER_BYTES, PageHeader, PageId
from kara_worker.http import disk_waits
from kara_worker.http.connection import Connection
from kara_worker.http.disk_waits import DiskWaits, Done
from kara_worker.http.request import Request
from kara_worker.http.server import HttpServer
from kara_worker.pages.page_store import StoredPage

SIZE = 1 << 20
DATA = os.urandom(SIZE)
WAIT_S = 20.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[StoredPage]:
    header = PageHeader.of(PageId(bytes(16), 0), memoryview(DATA), page_bytes=SIZE, created_ns=1)
    path = tmp_path / "page"
    path.write_bytes(header.encode() + DATA)
    fd = os.open(path, os.O_RDONLY)
    yield StoredPage(fd, HEADER_BYTES, header)
    os.close(fd)


def run(work: Callable[[DiskWaits], Awaitable[object]]) -> object:
    async def scenario() -> object:
        waits = DiskWaits(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(waits), WAIT_S)
        finally:
            await waits.close()

    return asyncio.run(scenario())


def told(
    waits: DiskWaits, page: StoredPage, count: int, into: int = -1
) -> asyncio.Future[tuple[int, OSError | None]]:
    future: asyncio.Future[tuple[int, OSError | None]] = asyncio.get_running_loop().create_future()

    def done(sent: int, error: OSError | None) -> None:
        future.set_result((sent, error))

    waits.bring(page, page.offset, count, done, into)
    return future


@pytest.mark.parametrize("null", [True, False], ids=["null device", "none"])
def test_everybody_is_told(page: StoredPage, null: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not null:
        monkeypatch.setattr(disk_waits, "_NULL_DEVICE", os.makedev(1, 5))  # so /dev/null is some other device

    async def work(waits: DiskWaits) -> object:
        return await asyncio.gather(*(told(waits, page, SIZE) for _ in range(100)))

    assert run(work) == [(0, None)] * 100


def test_a_file_that_is_no_null_device_is_not_written_to(
    page: StoredPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "null"
    wrong.write_bytes(b"precious")
    monkeypatch.setattr(os, "devnull", str(wrong))

    async def work(waits: DiskWaits) -> object:
        return await told(waits, page, SIZE)

    assert run(work) == (0, None)
    assert wrong.read_bytes() == b"precious"


def test_a_disk_that_fails_is_told_of(page: StoredPage) -> None:
    class Unreadable(StoredPage):
        pass

    async def work(waits: DiskWaits) -> object:
        out = os.open(os.devnull, os.O_WRONLY)
        try:
            _, error = await told(waits, Unreadable(out, 0, page.header), SIZE)
            with pytest.raises(OSError):
                await waits.brought(Unreadable(out, 0, page.header), 0, SIZE)
            return error
        finally:
            os.close(out)

    assert isinstance(run(work), OSError)


def test_the_socket_gets_what_it_takes_at_once(page: StoredPage) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)

        async def work(waits: DiskWaits) -> object:
            return await told(waits, page, SIZE, ours.fileno())

        sent, error = run(work)  # type: ignore[misc]
        assert error is None
        assert 0 < sent < SIZE
        ours.close()
        got = bytearray()
        while data := peer.recv(SIZE):
            got += data
        assert bytes(got) == DATA[:sent]


def test_a_full_socket_gets_nothing_and_that_is_no_error(page: StoredPage) -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.setblocking(False)
        while select.select([], [ours], [], 0)[1]:
            ours.send(bytes(SIZE))

        async def work(waits: DiskWaits) -> object:
            return await told(waits, page, SIZE, ours.fileno())

        assert run(work) == (0, None)


class HeldWaits:
    """Waits that end when the test says so; how much the socket takes is the test's choice too."""

    def __init__(self) -> None:
        self.asked: list[tuple[StoredPage, int, int, Done, int]] = []
        self.changed = asyncio.Event()

    def bring(self, page: StoredPage, start: int, count: int, done: Done, into: int = -1) -> None:
        self.asked.append((page, start, count, done, into))
        self.changed.set()

    async def next(self) -> tuple[StoredPage, int, int, Done, int]:
        while not self.asked:
            self.changed.clear()
            await self.changed.wait()
        return self.asked.pop(0)

    async def close(self) -> None:
        assert not self.asked


class FromDisk:
    """Sends one page for /page, and for /again when it is asked a second time."""

    def __init__(self, page: StoredPage) -> None:
        self.page = page
        self.sent = 0
        self.connections: list[Connection] = []
        self.waited: list[float] = []

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        if head.startswith(b"GET /page"):
            self.connections.append(connection)
            connection.send_from_disk(HEAD, self.page, SIZE, self._sent)
            return True
        if head.startswith(b"GET /again") and not connection.waited_s:
            connection.answer_after_disk(head, self.page, self.page.offset, 4096)
            return True
        self.waited.append(connection.waited_s)
        connection.send(OTHER)
        return True

    def _sent(self) -> None:
        self.sent += 1

    async def handle(self, request: Request) -> None:
        raise AssertionError(request.path)


Conversation = Callable[
    [HttpServer, HeldWaits, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]
]


def talk(page: StoredPage, conversation: Conversation) -> FromDisk:
    application = FromDisk(page)

    async def scenario() -> None:
        server = HttpServer(application, name="test")
        held = HeldWaits()
        await server.disk_waits.close()
        server.disk_waits = held  # type: ignore[assignment]
        port = await server.listen_tcp("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.wait_for(conversation(server, held, reader, writer), WAIT_S)
        finally:
            writer.close()
            await server.close()

    asyncio.run(scenario())
    return application


@pytest.mark.parametrize("taken", [0, 1, SIZE // 2, SIZE])
def test_what_the_thread_did_not_send_the_loop_does(page: StoredPage, taken: int) -> None:
    async def conversation(
        server: HttpServer, held: HeldWaits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"GET /page HTTP/1.1\r\n\r\nGET /other HTTP/1.1\r\n\r\n")
        _, start, count, done, into = await held.next()
        assert (start, count) == (HEADER_BYTES, SIZE)
        rest = memoryview(DATA)[:taken]
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=os.dup(into)) as thread:
            thread.setblocking(False)
            reading = loop.create_task(reader.readexactly(len(HEAD) + SIZE + len(OTHER)))
            await loop.sock_sendall(thread, rest)
        done(taken, None)
        assert await reading == HEAD + DATA + OTHER

    assert talk(page, conversation).sent == 1


def test_a_request_is_looked_at_again_when_the_disk_has_delivered(page: StoredPage) -> None:
    async def conversation(
        server: HttpServer, held: HeldWaits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"GET /again HTTP/1.1\r\n\r\nGET /other HTTP/1.1\r\n\r\n")
        *_, done, into = await held.next()
        assert into == -1
        done(0, None)
        assert await reader.readexactly(2 * len(OTHER)) == 2 * OTHER

    waited, other = talk(page, conversation).waited
    assert waited > 0
    assert other == 0


def test_a_socket_that_a_thread_sends_to_is_closed_after_it(page: StoredPage) -> None:
    async def conversation(
        server: HttpServer, held: HeldWaits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"GET /page HTTP/1.1\r\n\r\n")
        *_, done, into = await held.next()
        (connection,) = server.connections
        connection.transport.abort()
        while server.connections:
            await asyncio.sleep(0)
        os.fstat(into)  # still that socket: another connection could have its number otherwise
        done(0, None)
        with pytest.raises(OSError):
            os.fstat(into)

    assert talk(page, conversation).sent == 0


def test_a_disk_that_fails_ends_the_connection(page: StoredPage) -> None:
    async def conversation(
        server: HttpServer, held: HeldWaits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"GET /page HTTP/1.1\r\n\r\n")
        *_, done, _ = await held.next()
        done(0, OSError(5, "input/output error"))
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readexactly(len(HEAD) + SIZE)

    assert talk(page, conversation).sent == 0


def test_a_connection_that_waits_for_a_disk_is_neither_idle_nor_expired(page: StoredPage) -> None:
    async def conversation(
        server: HttpServer, held: HeldWaits, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"GET /again HTTP/1.1\r\n\r\nGET /oth")
        *_, done, _ = await held.next()
        (connection,) = server.connections
        assert not connection.idle
        assert not connection.expired(connection.since + 1e6)
        done(0, None)
        writer.write(b"er HTTP/1.1\r\n\r\n")
        assert await reader.readexactly(2 * len(OTHER)) == 2 * OTHER

    talk(page, conversation)
