"""What a connection still has to send: bytes, parts of page files, descriptors. In order, never blocking.

Page files go out by sendfile straight from the page cache of the kernel.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from kara_worker.http.disk_waits import DiskWaits
from kara_worker.http.socket_transport import SocketTransport
from kara_worker.pages.page_store import StoredPage

_GATHER = 64  # buffers in one sendmsg; far below IOV_MAX
_TLS_CHUNK = 256 << 10


class PageSlice:
    """`count` bytes at `offset` of an open page's descriptor; keeps the page readable until it is sent."""

    __slots__ = ("count", "offset", "page")

    def __init__(self, page: StoredPage, offset: int, count: int) -> None:
        self.page = page
        self.offset = offset
        self.count = count


class DescriptorMessage:
    """Bytes whose first one carries descriptors (SCM_RIGHTS); only for unix sockets."""

    __slots__ = ("data", "pages")

    def __init__(self, data: bytes, pages: Sequence[StoredPage]) -> None:
        self.data = data
        self.pages = pages


Item = bytes | bytearray | memoryview | PageSlice | DescriptorMessage


class Output(Protocol):
    """One connection's way out. Used from the event loop's thread only."""

    last_progress: float  # monotonic seconds when the peer last took something

    def send(self, *items: Item) -> bool:
        """Queues and sends what the peer takes now; True when nothing is left.

        Memory given as memoryview may be reused by the caller as soon as this returns.
        """
        ...

    def put(self, item: bytes | memoryview | PageSlice) -> None:
        """Queues, for a `flush` to come; memory must stay as it is until it has been sent."""
        ...

    def flush(self) -> bool:
        """Sends what the peer takes now; True when nothing is left."""
        ...

    async def drain(self) -> None:
        """Returns when everything queued went out; ConnectionError when the peer is gone."""
        ...

    @property
    def pending(self) -> bool: ...

    def resume(self) -> None:
        """The transport takes bytes again."""
        ...

    def close(self) -> None: ...


class _Queued:
    """The queue and the wait for its end, shared by both outputs, which say how it is emptied."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[Item] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self.last_progress = time.monotonic()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def send(self, *items: Item) -> bool:
        self._queue.extend(items)
        if self.flush():
            return True
        self._own_memory()
        return False

    def put(self, item: bytes | memoryview | PageSlice) -> None:
        self._queue.append(item)

    def flush(self) -> bool:
        raise NotImplementedError

    async def drain(self) -> None:
        while self._queue and not self._closed:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        if self._closed:
            raise ConnectionResetError("the peer is gone")

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _own_memory(self) -> None:
        """Copies what was lent: the caller reuses its buffers once `send` returned."""
        for index, item in enumerate(self._queue):
            if isinstance(item, memoryview):
                self._queue[index] = bytes(item)


class SocketOutput(_Queued):
    """Plain TCP or unix socket. Owns it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: SocketTransport, disk_waits: DiskWaits
    ) -> None:
        super().__init__(loop)
        self._disk_waits = disk_waits
        self._transport = transport
        self._socket = transport.socket
        self._send = self._socket.send
        self._fd = self._socket.fileno()
        self._watching = False
        self._lent = False  # to a thread: the descriptor must stay this socket's

    def flush(self) -> bool:
        if self._watching:
            return False
        queue = self._queue
        if len(queue) == 1 and type(data := queue[0]) is bytes:
            # most answers are one piece of memory, and the peer takes it whole
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._fail()
                return True
            if sent == len(data):
                queue.clear()
                return True
            queue[0] = memoryview(data)[sent:]
        return self._flush()

    def resume(self) -> None:
        """Nothing to do: this output watches its own descriptor."""

    def _flush(self) -> bool:
        queue = self._queue
        try:
            while queue:
                item = queue[0]
                if type(item) is PageSlice:
                    self._send_slice(item)
                elif type(item) is DescriptorMessage:
                    self._send_descriptors(item)
                else:
                    self._send_buffers()
        except BlockingIOError:
            self.last_progress = time.monotonic()
            self._watch()
            return False
        except (OSError, ValueError):
            self._fail()
            return True
        return True

    def _send_slice(self, item: PageSlice) -> None:
        sent = os.sendfile(self._fd, item.page.fd, item.offset, item.count)
        if not sent:
            raise OSError(f"page {item.page.header.page} ended {item.count} bytes early")
        item.offset += sent
        item.count -= sent
        if not item.count:
            self._queue.popleft()

    def _send_descriptors(self, item: DescriptorMessage) -> None:
        sent = socket.send_fds(self._socket, [item.data], [page.fd for page in item.pages])
        self._queue.popleft()
        if sent < len(item.data):
            self._queue.appendleft(item.data[sent:])

    def _send_buffers(self) -> None:
        queue = self._queue
        if len(queue) == 2 and type(queue[1]) is PageSlice:
            head = queue[0]
            assert not isinstance(head, (PageSlice, DescriptorMessage))
            if (sent := self._send(head, socket.MSG_MORE)) == len(head):
                queue.popleft()
            else:
                queue[0] = memoryview(head)[sent:]
            return
        buffers: list[bytes | bytearray | memoryview] = []
        for item in queue:
            if isinstance(item, (PageSlice, DescriptorMessage)) or len(buffers) == _GATHER:
                break
            buffers.append(item)
        # MSG_MORE joins a response head and the file that follows into full segments
        more = socket.MSG_MORE if len(queue) > len(buffers) else 0
        sent = self._socket.sendmsg(buffers, (), more)
        for buffer in buffers:
            queue.popleft()
            if sent < len(buffer):
                queue.appendleft(memoryview(buffer)[sent:])
                return
            sent -= len(buffer)

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_writer(self._fd, self._writable)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_writer(self._fd)

    def _writable(self) -> None:
        if self._flush():
            self._unwatch()
            self._wake()

    async def send_from_disk(self, *items: Item) -> None:
        """Sends everything; a thread waits for pages that the disk still has to deliver, the loop sends them.

        sendfile of a page that is not in memory blocks its caller, and would stop every connection of the
        loop. Threads that send as well take the interpreter at every piece that the peer takes: a reader
        of what is in memory waited 6 ms beside 16 of them, and 0.1 ms beside threads that only wait.
        """
        await self.drain()
        slices = deque(item for item in items if type(item) is PageSlice)
        ahead = self._next_brought(slices)
        try:
            for item in items:
                if type(item) is PageSlice:
                    assert ahead is not None
                    brought, ahead = ahead, self._next_brought(slices)  # while this one is sent
                    await brought
                if self._closed:
                    raise ConnectionResetError("the peer is gone")
                self._queue.append(item)
                if type(item) is PageSlice:
                    self.flush()
        except OSError as exc:
            self._fail()
            raise ConnectionResetError(str(exc)) from exc
        finally:
            if ahead is not None:
                ahead.cancel()
        self.flush()
        await self.drain()

    def send_by_thread(self, head: bytes, item: PageSlice, done: Callable[[], None]) -> None:
        """Sends a page that the disk still has to deliver: a thread sends what the peer takes at once and has
        the rest brought into memory, for `flush`. Nothing may be queued before, nor until `done` is called,
        which it is unless the connection has ended.
        """
        left = self._send_head(head)
        if left:
            self._queue.append(left)

        def delivered(sent: int, error: OSError | None) -> None:
            self._lent = False
            if self._closed:
                self._socket.close()
                return
            if error is not None:
                self._fail()
                return
            if sent < item.count:
                item.offset += sent
                item.count -= sent
                self._queue.append(item)
            done()

        self._lent = True
        into = -1 if left else self._fd
        self._disk_waits.bring(item.page, item.offset, item.count, delivered, into)

    def _send_head(self, head: bytes) -> memoryview:
        """What the peer did not take of it."""
        try:
            return memoryview(head)[self._send(head, socket.MSG_MORE) :]
        except BlockingIOError:
            return memoryview(head)
        except OSError:
            self._fail()
            return memoryview(head)

    def _next_brought(self, slices: deque[PageSlice]) -> asyncio.Future[None] | None:
        if not slices:
            return None
        item = slices.popleft()
        return self._disk_waits.brought(item.page, item.offset, item.count)

    def _fail(self) -> None:
        self._queue.clear()
        self._unwatch()
        self._transport.abort()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._unwatch()
        self._queue.clear()
        if self._lent:  # closed when it is back; what is being sent ends now
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._socket.close()
        self._wake()


class TransportOutput(_Queued):
    """TLS: bytes go through the transport, page files are read and written in chunks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        super().__init__(loop)
        self._transport = transport
        self.paused = False

    def flush(self) -> bool:
        while self._queue and not self.paused and not self._closed:
            item = self._queue.popleft()
            if isinstance(item, DescriptorMessage):
                raise TypeError("descriptors cannot travel over TLS")
            if isinstance(item, PageSlice):
                if not self._write_slice(item):
                    return True
            else:
                self._transport.write(bytes(item))
            self.last_progress = time.monotonic()
        return not self._queue

    def _write_slice(self, item: PageSlice) -> bool:
        data = os.pread(item.page.fd, min(item.count, _TLS_CHUNK), item.offset)
        if not data:
            self._queue.clear()
            self._transport.abort()
            return False
        item.offset += len(data)
        item.count -= len(data)
        if item.count:
            self._queue.appendleft(item)
        self._transport.write(data)
        return True

    def resume(self) -> None:
        self.paused = False
        if self.flush():
            self._wake()

    def close(self) -> None:
        self._closed = True
        self._queue.clear()
        self._wake()
