"""Connections to stores against a server that sends what a test wrote down."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from kara_cache.ufs.lines import Answer, BadAnswer, Lines

REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class ScriptedServer:
    """Each connection gets the next list of answers; after its last one it is closed."""

    def __init__(self) -> None:
        self.scripts: list[list[bytes]] = []
        self.requests = 0
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self.scripts[self.connections]
            self.connections += 1
            with connection:
                connection.settimeout(10)
                for answer in script:
                    if not self._request(connection):
                        break
                    self.requests += 1
                    with contextlib.suppress(OSError):  # the client had enough
                        connection.sendall(answer)

    @staticmethod
    def _request(connection: socket.socket) -> bool:
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            try:
                piece = connection.recv(4096)
            except ConnectionResetError:
                return False
            if not piece:
                return False
            got += piece
        return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()


@pytest.fixture
def lines(server: ScriptedServer) -> Iterator[Lines]:
    lines = Lines(lambda wait_s: socket.create_connection(("127.0.0.1", server.port), wait_s), keep=4)
    yield lines
    lines.close()


def ask(lines: Lines, *, has_body: bool = True) -> Answer:
    return lines.ask(REQUEST, connect_s=10, silence_s=10, has_body=has_body)


def body(answer: Answer) -> bytes:
    got, view = b"", memoryview(bytearray(3))
    while count := answer.receive_into(view):
        got += view[:count]
    return got


def test_answers_one_after_another_use_one_connection(server: ScriptedServer, lines: Lines) -> None:
    empty = b"HTTP/1.1 206 Partial\r\ncontent-length:0\r\n\r\n"
    server.scripts = [[WHOLE, empty, WHOLE, b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", WHOLE]]
    assert [body(ask(lines)) for _ in range(5)] == [b"hello", b"", b"hello", b"", b"hello"]
    assert server.connections == 1


def test_head_has_no_body_whatever_its_length_says(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", WHOLE]]
    answer = ask(lines, has_body=False)
    assert answer.headers["CONTENT-LENGTH"] == "5"
    assert answer.ended
    assert body(ask(lines)) == b"hello"
    assert server.connections == 1


def test_interim_answers_are_passed_over(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + WHOLE]]
    answer = ask(lines)
    assert (answer.status, body(answer)) == (200, b"hello")


def test_connection_that_the_peer_closed_is_replaced(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[WHOLE], [WHOLE]]
    assert body(ask(lines)) == b"hello"
    assert body(ask(lines)) == b"hello"
    assert (server.connections, server.requests) == (2, 2)


def test_connection_on_which_more_came_than_was_announced_is_replaced(
    server: ScriptedServer, lines: Lines
) -> None:
    server.scripts = [[WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", WHOLE], [WHOLE]]
    assert body(ask(lines)) == b"hello"
    assert body(ask(lines)) == b"hello"
    assert server.connections == 2


@pytest.mark.parametrize(("version", "connection"), [(b"1.0", b"x: y"), (b"1.1", b"Connection: Close")])
def test_connection_that_ends_with_its_answer_is_not_kept(
    server: ScriptedServer, lines: Lines, version: bytes, connection: bytes
) -> None:
    once = b"HTTP/%s 200 OK\r\nContent-Length: 5\r\n%s\r\n\r\nhello" % (version, connection)
    server.scripts = [[once, WHOLE], [WHOLE]]
    assert body(ask(lines)) == b"hello"
    assert body(ask(lines)) == b"hello"
    assert server.connections == 2


def test_body_without_a_length_ends_with_the_connection(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[b"HTTP/1.1 200 OK\r\n\r\nhello"], [WHOLE]]
    answer = ask(lines)
    assert answer.left is None
    assert body(answer) == b"hello"


def test_chunks(server: ScriptedServer, lines: Lines) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.scripts = [[head + b"4\r\nhell\r\n1\r\no\r\n0\r\n\r\n", WHOLE]]
    answer = ask(lines)
    assert answer.chunked
    assert body(answer) == b"hello"
    assert body(ask(lines)) == b"hello"


def test_body_that_breaks_off_says_so_and_its_connection_is_not_used_again(
    server: ScriptedServer, lines: Lines
) -> None:
    server.scripts = [[WHOLE[:-2]], [WHOLE]]
    answer = ask(lines)
    assert body(answer) == b"hel"
    assert answer.left == 2
    answer.finish()
    assert body(ask(lines)) == b"hello"


def test_text_of_an_error_is_thrown_away_and_its_connection_kept(
    server: ScriptedServer, lines: Lines
) -> None:
    server.scripts = [[b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nabcde", WHOLE]]
    answer = ask(lines)
    assert answer.status == 404
    answer.finish()
    answer.finish()
    assert body(ask(lines)) == b"hello"
    assert server.connections == 1


def test_body_that_nobody_wants_is_not_waited_for(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello", WHOLE], [WHOLE]]
    ask(lines).finish()
    assert body(ask(lines)) == b"hello"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 xyz Bad\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: ",
    ],
)
def test_what_is_not_http_is_an_error(server: ScriptedServer, lines: Lines, answer: bytes) -> None:
    server.scripts = [[answer]]
    with pytest.raises(BadAnswer):
        ask(lines)


def test_silence_is_a_timeout(lines: Lines, server: ScriptedServer) -> None:
    server.scripts = [[b"", WHOLE]]
    with pytest.raises(TimeoutError):
        lines.ask(REQUEST, connect_s=10, silence_s=0.05)


def test_values_of_one_name_are_joined(server: ScriptedServer, lines: Lines) -> None:
    server.scripts = [[b"HTTP/1.1 204 OK\r\nVia: a\r\nvia: b\r\n\r\n"]]
    assert ask(lines).headers.get("VIA") == "a, b"
