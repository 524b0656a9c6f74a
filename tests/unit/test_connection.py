"""One connection, against bytes put on the other end of a socket pair, and pools over real listeners."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from time import monotonic

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.endpoint import Endpoint
from kara_cache.errors import FormatError, WorkerBusy, WorkerUnavailable
from kara_cache.transport.address import TcpAddress, UnixAddress
from kara_cache.transport.connection import ClosedBeforeResponse, Connection
from kara_cache.transport.connection_pool import ConnectionPool
from kara_cache.transport.response import parse_chunk_size, parse_head

FAR_S = 30.0


class Pair:
    """A connection and the socket at its other end."""

    def __init__(self, *, stall_s: float = FAR_S) -> None:
        ours, self.peer = socket.socketpair()
        self.connection = Connection(ours, "peer", stall_s=stall_s)
        self.connection.send(b"x", monotonic() + FAR_S)

    def answers(self, data: bytes, *, last: bool = False) -> Connection:
        self.peer.sendall(data)
        if last:
            self.peer.shutdown(socket.SHUT_WR)
        return self.connection

    def close(self) -> None:
        self.connection.close()
        self.peer.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_a_connection_that_is_collected_in_a_cycle_closes_its_socket_without_a_warning() -> None:
    class Owner:
        connection: Connection
        me: Owner

    ours, peer = socket.socketpair()
    owner = Owner()
    owner.me, owner.connection = owner, Connection(ours, "peer", stall_s=FAR_S)
    del ours, owner
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert [str(one.message) for one in caught] == []
    peer.settimeout(FAR_S)
    assert peer.recv(1) == b"", "the other end sees it closed"
    peer.close()


def test_body_goes_into_the_callers_buffer_whatever_came_with_the_head(pair: Pair) -> None:
    body = os.urandom(100_000)
    connection = pair.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
    assert connection.response().length == 100_000
    buffer = bytearray(100_000)
    assert connection.receive_into(memoryview(buffer)) == 100_000
    assert bytes(buffer) == body
    connection.finish()


def test_interim_responses_are_passed_over(pair: Pair) -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\n"
    connection = pair.answers(interim * 3 + b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
    assert connection.response().status == 404
    assert connection.receive_all() == b"{}"


@given(
    body=st.binary(max_size=3000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=8),
    reads=st.lists(st.integers(1, 900), min_size=1, max_size=5),
)
def test_chunked_body_is_the_body_however_it_is_cut_and_read(
    body: bytes, sizes: list[int], reads: list[int]
) -> None:
    pair = Pair()
    message, at, turn = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, 0
    while at < len(body):
        piece = body[at : at + sizes[turn % len(sizes)]]
        message += b"%X;x=y\r\n%b\r\n" % (len(piece), piece)
        at, turn = at + len(piece), turn + 1
    connection = pair.answers(message + b"0\r\nX-Kara-Sum: AB,cd\r\n\r\n")
    assert connection.response().length is None
    got, turn = b"", 0
    while True:
        buffer = bytearray(reads[turn % len(reads)])
        count = connection.receive_into(memoryview(buffer))
        got += buffer[:count]
        turn += 1
        if count < len(buffer):
            break
    assert got == body
    assert connection.finish() == b"\r\nx-kara-sum: ab,cd\r\n"
    pair.close()


def test_receive_some_never_waits_for_more_than_is_there(pair: Pair) -> None:
    connection = pair.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    connection.response()
    buffer = memoryview(bytearray(100))
    assert connection.receive_some(buffer) == 3
    pair.peer.sendall(b"defghij")
    assert connection.receive_some(buffer) == 7
    assert connection.receive_some(buffer) == 0


def test_lines_come_whole_across_chunks(pair: Pair) -> None:
    chunks = b"3\r\na\nb\r\n4\r\nc\nd\n\r\n1\r\ne\r\n0\r\n\r\n"
    connection = pair.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    connection.response()
    assert list(connection.receive_lines()) == [b"a", b"bc", b"d", b"e"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", "protocol", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", "protocol", id="no framing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "protocol", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n", "protocol", id="odd length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "protocol",
            id="two framings",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000, "protocol", id="endless head"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", "reset", id="cut in the head"),
    ],
)
def test_bad_heads(pair: Pair, message: bytes, reason: str) -> None:
    connection = pair.answers(message, last=True)
    with pytest.raises(WorkerUnavailable) as caught:
        connection.response()
    assert caught.value.reason == reason
    assert "peer" in str(caught.value)


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        pytest.param(b"zz\r\n", "protocol", id="no number"),
        pytest.param(b"+5\r\nhello\r\n", "protocol", id="sign"),
        pytest.param(b"5\r\nhelloX\r\n", "protocol", id="longer than announced"),
        pytest.param(b"5\r\nhello\r\n", "reset", id="no last chunk"),
        pytest.param(b"5\r\nhello\r\n0\r\nX-Kara-Sum: a", "reset", id="cut in the trailer"),
        pytest.param(b"a\r\nhellohello\r\n0\r\n\r\n", "protocol", id="more than due"),
    ],
)
def test_bad_chunks(pair: Pair, chunks: bytes, reason: str) -> None:
    connection = pair.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks, last=True)
    connection.response()

    def receive() -> None:
        connection.receive_into(memoryview(bytearray(5)))
        connection.finish()

    with pytest.raises(WorkerUnavailable) as caught:
        receive()
    assert caught.value.reason == reason


def test_a_peer_that_closes_before_it_says_anything_is_told_apart(pair: Pair) -> None:
    connection = pair.answers(b"", last=True)
    with pytest.raises(ClosedBeforeResponse):
        connection.response()


def test_a_peer_that_closes_after_a_sign_of_life_is_a_reset(pair: Pair) -> None:
    connection = pair.answers(b"HTTP/1.1 102 Processing\r\n\r\n", last=True)
    with pytest.raises(WorkerUnavailable) as caught:
        connection.response()
    assert not isinstance(caught.value, ClosedBeforeResponse)
    assert caught.value.reason == "reset"


def test_silence_is_a_timeout() -> None:
    pair = Pair(stall_s=0.05)
    with pytest.raises(WorkerUnavailable) as caught:
        pair.connection.response()
    assert caught.value.reason == "timeout"
    pair.close()


def test_silence_in_the_middle_of_a_body_is_a_timeout_after_the_bytes_before_it() -> None:
    pair = Pair(stall_s=0.05)
    connection = pair.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"x" * 20_000)
    connection.response()
    with pytest.raises(WorkerUnavailable) as caught:
        connection.receive_into(memoryview(bytearray(50_000)))
    assert caught.value.reason == "timeout"
    pair.close()


def test_the_deadline_holds_though_the_peer_shows_signs_of_life() -> None:
    pair = Pair(stall_s=FAR_S)
    pair.connection.deadline = monotonic() + 0.2
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.01):
            pair.peer.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(WorkerUnavailable) as caught:
        pair.connection.response()
    done.set()
    thread.join()
    assert caught.value.reason == "timeout"
    assert "out of time" in str(caught.value) or "sent nothing" in str(caught.value)
    pair.close()


def test_a_peer_that_takes_nothing_is_a_timeout() -> None:
    pair = Pair(stall_s=0.05)
    with pytest.raises(WorkerUnavailable) as caught:
        pair.connection.send(bytes(16 << 20), monotonic() + FAR_S)
    assert caught.value.reason == "timeout"
    pair.close()


def test_descriptors_come_with_the_first_byte_and_close_on_exec() -> None:
    pair = Pair()
    read_end, write_end = os.pipe()
    socket.send_fds(pair.peer, [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], [read_end])
    (fd,) = pair.connection.take_descriptors(64)
    assert pair.connection.response().status == 200
    assert pair.connection.receive_all() == b"ok"
    assert not os.get_inheritable(fd)
    os.write(write_end, b"through")
    assert os.read(fd, 10) == b"through"
    for descriptor in (fd, read_end, write_end):
        os.close(descriptor)
    pair.close()


def test_more_descriptors_than_asked_for_are_refused_and_closed() -> None:
    pair = Pair()
    before = len(os.listdir("/proc/self/fd"))
    read_end, write_end = os.pipe()
    socket.send_fds(pair.peer, [b"HTTP/1.1 200 OK\r\n"], [read_end] * 5)
    with pytest.raises(WorkerUnavailable) as caught:
        pair.connection.take_descriptors(2)
    assert caught.value.reason == "protocol"
    os.close(read_end)
    os.close(write_end)
    assert len(os.listdir("/proc/self/fd")) == before
    pair.close()


@pytest.mark.parametrize("line", [b"", b"-1", b" ", b"0x1", b"1 2", b"1_0", b"f" * 16])
def test_chunk_sizes_are_hexadecimal_digits_and_nothing_else(line: bytes) -> None:
    with pytest.raises(FormatError):
        parse_chunk_size(line)


def test_field_names_match_as_a_whole_and_in_any_case() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nX-Content-Length: 9\r\ncOnTeNt-LeNgTh:  7 \r\nConnection: Close")
    assert (head.length, head.keep_alive) == (7, False)


# -- addresses and pools -------------------------------------------------------------------------------


class Listener:
    """Accepts and holds connections; the backlog of the kernel does the rest."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]

    def address(self, **options: object) -> TcpAddress:
        return TcpAddress(Endpoint("127.0.0.1", self.port), stall_s=FAR_S, **options)  # type: ignore[arg-type]


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.sock.close()


def pool_of(
    listener: Listener, *, limit: int = 2, idle_s: float = FAR_S, wait_s: float = 5.0
) -> ConnectionPool:
    return ConnectionPool(listener.address(), limit=limit, idle_s=idle_s, connect_timeout_s=wait_s)


def test_refused(listener: Listener) -> None:
    address = listener.address()
    listener.sock.close()
    with pytest.raises(WorkerUnavailable) as caught:
        address.connect(5)
    assert caught.value.reason == "refused"
    assert f"127.0.0.1:{listener.port}" in str(caught.value)


def test_a_name_that_does_not_resolve_is_dns() -> None:
    with pytest.raises(WorkerUnavailable) as caught:
        TcpAddress(Endpoint("no-such-host.invalid", 1), stall_s=1).connect(5)
    assert caught.value.reason == "dns"


def test_a_missing_unix_socket_is_refused(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(WorkerUnavailable) as caught:
        UnixAddress(os.path.join(tmp_path, "none.sock"), stall_s=1).connect(5)
    assert caught.value.reason == "refused"


def test_a_unix_socket_whose_backlog_is_full_is_waited_for_and_then_a_timeout(
    tmp_path: os.PathLike[str],
) -> None:
    path = os.path.join(tmp_path, "busy.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
        sock.listen(0)
        address, held = UnixAddress(path, stall_s=1), []

        def fill_the_backlog() -> None:
            while True:
                held.append(address.connect(0.05))

        with pytest.raises(WorkerUnavailable) as caught:
            fill_the_backlog()
        assert caught.value.reason == "timeout"
        for connection in held:
            connection.close()


def test_a_peer_that_speaks_no_tls(listener: Listener) -> None:
    def speak() -> None:
        sock, _ = listener.sock.accept()
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        sock.recv(4096)
        sock.close()

    thread = threading.Thread(target=speak)
    thread.start()
    with pytest.raises(WorkerUnavailable) as caught:
        listener.address(tls=ssl.create_default_context).connect(5)
    thread.join()
    assert caught.value.reason == "tls"


def test_tls_silence_is_a_timeout_and_bytes_get_through(listener: Listener) -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    body, finish = os.urandom(300_000), threading.Event()

    def serve() -> None:
        sock, _ = listener.sock.accept()
        with server_context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(100)
            tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + body)
            tls.recv(100)
            finish.wait(FAR_S)

    thread = threading.Thread(target=serve)
    thread.start()
    address = TcpAddress(Endpoint("127.0.0.1", listener.port), stall_s=0.3, tls=lambda: client_context)
    connection = address.connect(5)
    connection.send(b"x", monotonic() + FAR_S)
    connection.response()
    buffer = bytearray(300_000)
    assert connection.receive_into(memoryview(buffer)) == 300_000
    assert bytes(buffer) == body
    connection.finish()
    connection.send(b"y", monotonic() + FAR_S)
    with pytest.raises(WorkerUnavailable) as caught:
        connection.response()
    assert caught.value.reason == "timeout"
    connection.close()
    finish.set()
    thread.join()


def test_connections_are_used_again_the_latest_first(listener: Listener) -> None:
    pool = pool_of(listener)
    first, second = pool.borrow(monotonic() + 5), pool.borrow(monotonic() + 5)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.borrow(monotonic() + 5) is second
    assert second.reused
    pool.close()
    second.close()


def test_a_full_pool_makes_callers_wait_and_then_says_busy(listener: Listener) -> None:
    pool = pool_of(listener, limit=1, wait_s=0.05)
    lent = pool.borrow(monotonic() + 5)
    with pytest.raises(WorkerBusy, match="all 1 connections"):
        pool.borrow(monotonic() + 5)
    pool.discard(lent)
    pool.discard(pool.borrow(monotonic() + 5))


def test_a_waiting_caller_gets_the_connection_that_comes_back(listener: Listener) -> None:
    pool = pool_of(listener, limit=1, wait_s=FAR_S)
    lent = pool.borrow(monotonic() + FAR_S)
    got: list[Connection] = []
    thread = threading.Thread(target=lambda: got.append(pool.borrow(monotonic() + FAR_S)))
    thread.start()
    pool.give_back(lent)
    thread.join(FAR_S)
    assert got == [lent]
    pool.discard(lent)


def test_fresh_means_new_and_ends_the_idle_ones(listener: Listener) -> None:
    pool = pool_of(listener)
    old = pool.borrow(monotonic() + 5)
    pool.give_back(old)
    new = pool.borrow(monotonic() + 5, fresh=True)
    assert new is not old
    assert not new.reused
    assert "closed" in repr(old)
    pool.discard(new)


def test_connections_that_were_idle_for_too_long_are_not_used(listener: Listener) -> None:
    pool = pool_of(listener, idle_s=0.0)
    old = pool.borrow(monotonic() + 5)
    pool.give_back(old)
    new = pool.borrow(monotonic() + 5)
    assert new is not old
    pool.discard(new)


def test_a_closed_pool_closes_what_comes_back(listener: Listener) -> None:
    pool = pool_of(listener)
    lent = pool.borrow(monotonic() + 5)
    pool.close()
    pool.give_back(lent)
    assert "closed" in repr(lent)
    assert "0 idle, 0 lent" in repr(pool)
