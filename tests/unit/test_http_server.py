"""The HTTP layer alone, spoken to byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from kara_worker.http.request import Request
from kara_worker.http.server import Connection, HttpServer


class Echo:
    """Answers /fast at once, everything else with what it understood of the request."""

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        if not head.startswith(b"GET /fast"):
            return False
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"fast")
        return True

    async def handle(self, request: Request) -> None:
        if request.path == "/fail":
            raise FileNotFoundError(2, "no such file", "/m/x")
        if request.path == "/bug":
            raise RuntimeError("secret detail")
        if request.path == "/stream":
            await request.start(length=None)
            for _ in range(3):
                await request.write_chunk(b"x" * 10)
            await request.finish(["X-Sum: 1"])
            return
        if request.path == "/break":
            await request.start(length=100)
            raise OSError("the store went away")
        if request.path == "/large":
            await request.respond(200, bytes(8 << 20))
            return
        body = await request.body_bytes(1 << 20)
        await request.respond_json({"path": request.path, "query": request.query, "body": body.decode()})


Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]


def talk(conversation: Conversation) -> object:
    async def scenario() -> object:
        server = HttpServer(Echo(), name="test")
        port = await server.listen_tcp("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await asyncio.wait_for(conversation(reader, writer), 20)
        finally:
            writer.close()
            await server.close()

    return asyncio.run(scenario())


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    body = await reader.readexactly(int(fields.get("content-length", 0)))
    return int(lines[0].split()[1]), fields, body


def exchange(request: bytes) -> tuple[int, dict[str, str], bytes]:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(request)
        return await answer(reader)

    return talk(conversation)  # type: ignore[return-value]


def test_query_is_decoded_and_plus_stays_plus() -> None:
    _, _, body = exchange(b"GET /a%20b?path=/m/x%2By+z%25&k= HTTP/1.1\r\n\r\n")
    assert json.loads(body) == {"path": "/a b", "query": {"path": "/m/x+y+z%", "k": ""}, "body": ""}


def test_pipelined_requests_are_answered_in_order() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(
            b"GET /fast HTTP/1.1\r\n\r\n"
            b"PUT /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
            b"GET /fast HTTP/1.1\r\n\r\n"
            b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
            b"GET /fast HTTP/1.1\r\n\r\n"
        )
        return [(await answer(reader))[2] for _ in range(5)]

    fast, put, fast2, chunked, fast3 = talk(conversation)  # type: ignore[misc]
    assert (fast, fast2, fast3) == (b"fast", b"fast", b"fast")
    assert json.loads(put)["body"] == "abc"
    assert json.loads(chunked)["body"] == "hi"


def test_a_request_cut_into_bytes_is_understood() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        for byte in b"PUT /p HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        return (await answer(reader))[2]

    assert json.loads(talk(conversation))["body"] == "hello"  # type: ignore[arg-type]


def test_a_body_larger_than_the_socket_buffers_arrives_whole() -> None:
    _, _, body = exchange(b"GET /large HTTP/1.1\r\n\r\n")
    assert body == bytes(8 << 20)


def test_streamed_body_ends_with_its_trailer() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(b"GET /stream HTTP/1.1\r\n\r\nGET /fast HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return await reader.readuntil(b"fast")

    body = talk(conversation)
    assert isinstance(body, bytes)
    assert body.startswith(b"a\r\nxxxxxxxxxx\r\n" * 3 + b"0\r\nX-Sum: 1\r\n\r\n")


def test_expect_continue_is_granted() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(b"PUT /p HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"ok")
        return (await answer(reader))[2]

    assert json.loads(talk(conversation))["body"] == "ok"  # type: ignore[arg-type]


def test_errors_become_answers_and_bugs_keep_their_text_to_themselves() -> None:
    status, _, body = exchange(b"GET /fail HTTP/1.1\r\n\r\n")
    assert (status, json.loads(body)) == (404, {"error": "not_found", "message": "no such file: /m/x"})
    status, _, body = exchange(b"GET /bug HTTP/1.1\r\n\r\n")
    assert status == 500
    assert b"secret" not in body


def test_a_failure_inside_a_body_breaks_the_connection() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(b"GET /break HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""

    assert talk(conversation) == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"GET /x HTTP/2\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + b"x" * 40_000, 431),
    ],
    ids=[
        "no target",
        "HTTP/2",
        "no colon",
        "folded",
        "negative",
        "two lengths",
        "smuggling",
        "gzip",
        "chunk",
        "head",
    ],
)
def test_malformed_requests_are_refused(request_bytes: bytes, status: int) -> None:
    got, fields, body = exchange(request_bytes)
    assert got == status
    assert fields["connection"] == "close"
    assert json.loads(body)["error"] == "format"


def test_connection_close_is_obeyed() -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> object:
        writer.write(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
        await answer(reader)
        return await reader.read()

    assert talk(conversation) == b""
