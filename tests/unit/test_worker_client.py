"""What can be asked of one worker, asked of a scripted one over real sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest
import scripted_worker as script
from scripted_worker import Answer, Behaviour, ScriptedWorker

from kara_cache.cached_file import CachedFile
from kara_cache.checksum import checksum
from kara_cache.errors import (
    AccessDenied,
    CacheError,
    PageCorrupt,
    StaleVersion,
    UnderStoreError,
    WorkerBusy,
    WorkerUnavailable,
)
from kara_cache.read_stages import Marks
from kara_cache.transport.worker_client import WorkerClient
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.base import FileInfo
from kara_cache.wire import FileRange, RangeFile, encode_ranges

FAR_S = 30.0
PAGE = 64 << 10
CONTENT = os.urandom(5 * PAGE + 321)
TRANSPORT = Transport(connect_timeout_s=5.0, stall_timeout_s=FAR_S, connections=4)
QUICK = Transport(connect_timeout_s=5.0, stall_timeout_s=0.1, connections=4)


def soon() -> float:
    return monotonic() + FAR_S


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    with ScriptedWorker({"/m/f": CONTENT}) as made:
        yield made


Connect = Callable[..., WorkerClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(worker: ScriptedWorker, transport: Transport = TRANSPORT, **changes: object) -> WorkerClient:
            client = WorkerClient(worker.member(**changes), transport)
            stack.callback(client.close)
            return client

        yield make


def read(client: WorkerClient, worker: ScriptedWorker, start: int = 0, length: int = len(CONTENT)) -> bytes:
    buffer = bytearray(min(length, len(CONTENT) - start))
    file = CachedFile(worker.file("/m/f"))
    client.read_into(file, start, memoryview(buffer), keep=True, deadline=soon(), marks=Marks())
    return bytes(buffer)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (0, PAGE), (PAGE - 1, 2), (100, 3 * PAGE), (0, len(CONTENT)), (5 * PAGE, 321)],
)
@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Answer.honest, id="hit"),
        pytest.param(script.fill(10_000), id="fill"),
        pytest.param(script.fill(1, 70_000, 3, interim=2), id="fill with signs of life"),
    ],
)
def test_reads_are_right(
    worker: ScriptedWorker, connect: Connect, behaviour: Behaviour, start: int, length: int
) -> None:
    worker.plan("GET", "/read", behaviour, behaviour)
    client = connect(worker)
    for _ in range(2):
        assert read(client, worker, start, length) == CONTENT[start : start + length]
    assert worker.accepted == 1


def test_a_read_tells_hit_from_fill_and_says_what_to_keep(worker: ScriptedWorker, connect: Connect) -> None:
    worker.plan("GET", "/read", Answer.honest, script.fill(5))
    client, file, view = connect(worker), CachedFile(worker.file("/m/f")), memoryview(bytearray(10))
    assert client.read_into(file, 0, view, keep=True, deadline=soon(), marks=Marks()) is True
    assert client.read_into(file, 0, view, keep=False, deadline=soon(), marks=Marks()) is False
    first, second = worker.requests
    assert "keep" not in first.query
    assert second.query["keep"] == "0"
    assert first.query["version"] == worker.files["/m/f"].version
    assert first.query["size"] == str(len(CONTENT))


def test_paths_with_every_odd_character_arrive_as_they_are(connect: Connect) -> None:
    path = "/m/a b+c%2F&start=9?#=é中/\U0001f600"
    with ScriptedWorker({path: b"content"}) as worker:
        client = connect(worker)
        info = client.info(path, soon())
        assert info.path == path
        buffer = bytearray(7)
        client.read_into(CachedFile(info), 0, memoryview(buffer), keep=True, deadline=soon(), marks=Marks())
        assert buffer == b"content"


def _lie(length: int) -> Behaviour:
    def behave(answer: Answer) -> None:
        data, start = answer.range()
        head = answer.hit_head(data, start).replace(
            b"Content-Length: %d" % len(data), b"Content-Length: %d" % length
        )
        answer.send(head + bytes(length))

    return behave


def _without(field: bytes) -> Behaviour:
    def behave(answer: Answer) -> None:
        data, start = answer.range()
        answer.send(answer.hit_head(data, start).replace(field, b"X-Other") + data)

    return behave


def _fill_without_sum(answer: Answer) -> None:
    data, _ = answer.range()
    answer.send(answer.fill_head() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))


def _short_fill(answer: Answer) -> None:
    data, start = answer.range()
    chunk = data[:-1]
    sums = answer.sums(data, start).encode()
    answer.send(answer.fill_head() + b"%x\r\n%b\r\n0\r\nX-Kara-Sum: %b\r\n\r\n" % (len(chunk), chunk, sums))


def _long_fill(answer: Answer) -> None:
    data, start = answer.range()
    chunk, sums = data + b"!", answer.sums(data, start).encode()
    answer.send(answer.fill_head() + b"%x\r\n%b\r\n0\r\nX-Kara-Sum: %b\r\n\r\n" % (len(chunk), chunk, sums))


def _fill_that_fails(answer: Answer) -> None:
    data, _ = answer.range()
    answer.send(answer.fill_head() + b"%x\r\n%b\r\n" % (len(data) // 2, data[: len(data) // 2]))
    raise ConnectionAbortedError


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param(script.reset, "reset", id="RST"),
        pytest.param(script.hang_up, "reset", id="FIN"),
        pytest.param(script.cut_after(70_000), "reset", id="FIN in the body"),
        pytest.param(_fill_that_fails, "reset", id="fill that fails"),
        pytest.param(script.stall, "timeout", id="silence"),
        pytest.param(script.stall_after(70_000), "timeout", id="silence in the body"),
        pytest.param(script.raw(b"220 mail.example ESMTP\r\n\r\n"), "protocol", id="another protocol"),
        pytest.param(_lie(10), "protocol", id="shorter than asked"),
        pytest.param(_lie(len(CONTENT) + 1), "protocol", id="longer than asked"),
        pytest.param(_without(b"X-Kara-Sum"), "protocol", id="no sums"),
        pytest.param(_without(b"X-Kara-Page"), "protocol", id="no page size"),
        pytest.param(_fill_without_sum, "protocol", id="no trailer"),
        pytest.param(_short_fill, "protocol", id="fill ends early"),
        pytest.param(_long_fill, "protocol", id="fill goes on"),
        pytest.param(script.flip(0), "corrupt", id="first bit"),
        pytest.param(script.flip(len(CONTENT) - 1), "corrupt", id="last byte"),
        pytest.param(script.flip(3 * PAGE), "corrupt", id="a byte in the middle"),
        pytest.param(script.fail(WorkerBusy("full")), "busy", id="busy"),
        pytest.param(script.fail(StaleVersion("gone")), "stale", id="stale"),
        pytest.param(script.fail(PageCorrupt("bad disk")), "corrupt", id="corrupt there"),
        pytest.param(script.fail(OSError(24, "EMFILE")), "internal", id="its own trouble"),
        pytest.param(
            script.raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\n<html>"), "protocol", id="no document"
        ),
    ],
)
def test_every_failure_has_its_reason_and_the_next_read_is_good(
    worker: ScriptedWorker, connect: Connect, behaviour: Behaviour, reason: str
) -> None:
    worker.plan("GET", "/read", behaviour)
    client = connect(worker, QUICK if reason == "timeout" else TRANSPORT)
    with pytest.raises(CacheError) as caught:
        read(client, worker)
    assert caught.value.reason == reason
    worker.closing.set()
    assert read(client, worker) == CONTENT


def test_a_corrupt_piece_is_named_with_place_and_sums(worker: ScriptedWorker, connect: Connect) -> None:
    worker.plan("GET", "/read", script.flip(2 * PAGE + 7))
    with pytest.raises(PageCorrupt) as caught:
        read(connect(worker), worker)
    message = str(caught.value)
    assert "/m/f" in message
    assert f"[{2 * PAGE}, {3 * PAGE})" in message
    assert f"127.0.0.1:{worker.port}" in message
    assert message.count("0x") == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/m/f"),
        PermissionError(13, "Permission denied", "/m/f"),
        UnderStoreError("s3 answered 503"),
        AccessDenied("token expired"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_answers_come_through_as_they_are_and_the_connection_lives_on(
    worker: ScriptedWorker, connect: Connect, error: Exception
) -> None:
    worker.plan("GET", "/read", script.fail(error))
    client = connect(worker)
    with pytest.raises(type(error)) as caught:
        read(client, worker)
    assert str(error.args[-1] if isinstance(error, UnderStoreError) else "") in str(caught.value)
    if type(error) is FileNotFoundError:
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (2, "/m/f")
    assert read(client, worker) == CONTENT
    assert worker.accepted == 1


def test_signs_of_life_keep_a_slow_read_alive(worker: ScriptedWorker, connect: Connect) -> None:
    """Each interval is shorter than the stall timeout, all together are longer."""
    transport = Transport(connect_timeout_s=5.0, stall_timeout_s=0.5, connections=4)
    beat, done = threading.Event(), threading.Event()
    beat.set()

    def slow(answer: Answer) -> None:
        for _ in range(8):
            answer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            done.wait(0.1)
        answer.honest()

    worker.plan("GET", "/read", slow)
    assert read(connect(worker, transport), worker) == CONTENT


def test_the_deadline_ends_a_read_that_shows_signs_of_life(worker: ScriptedWorker, connect: Connect) -> None:
    def forever(answer: Answer) -> None:
        while not answer.worker.closing.wait(0.02):
            answer.send(b"HTTP/1.1 102 Processing\r\n\r\n")

    worker.plan("GET", "/read", forever)
    client, file = connect(worker), CachedFile(worker.file("/m/f"))
    deadline = monotonic() + 0.2
    with pytest.raises(WorkerUnavailable) as caught:
        client.read_into(file, 0, memoryview(bytearray(10)), keep=True, deadline=deadline, marks=Marks())
    assert caught.value.reason == "timeout"


def test_a_dead_kept_alive_connection_is_replaced_without_a_failure(
    worker: ScriptedWorker, connect: Connect
) -> None:
    client = connect(worker)
    assert read(client, worker) == CONTENT
    worker.drop_connections()
    assert read(client, worker) == CONTENT
    assert worker.accepted == 2


def test_all_idle_connections_to_a_worker_that_restarted_are_given_up_together(
    worker: ScriptedWorker, connect: Connect
) -> None:
    client = connect(worker)
    gate = threading.Barrier(3)

    def together(answer: Answer) -> None:
        gate.wait(FAR_S)
        answer.honest()

    worker.plan("GET", "/read", together, together, together)
    threads = [threading.Thread(target=read, args=(client, worker)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FAR_S)
    assert worker.accepted == 3
    worker.drop_connections()
    assert read(client, worker) == CONTENT
    assert worker.accepted == 4
    assert "1 idle" in repr(client)


def test_a_second_failure_in_a_row_is_one(worker: ScriptedWorker, connect: Connect) -> None:
    client = connect(worker)
    read(client, worker)
    worker.drop_connections()
    worker.plan("GET", "/read", script.hang_up)
    with pytest.raises(WorkerUnavailable) as caught:
        read(client, worker)
    assert caught.value.reason == "reset"


def test_connection_close_is_honoured(worker: ScriptedWorker, connect: Connect) -> None:
    def closing(answer: Answer) -> None:
        data, start = answer.range()
        answer.send(answer.hit_head(data, start).replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + data)
        raise ConnectionAbortedError

    worker.plan("GET", "/read", closing)
    client = connect(worker)
    assert read(client, worker) == CONTENT
    assert "0 idle" in repr(client)


def test_the_authorization_is_sent_with_every_kind_of_request(
    worker: ScriptedWorker, connect: Connect
) -> None:
    values = iter(["Bearer one"] + ["Bearer two"] * 20)
    transport = Transport(
        connect_timeout_s=5, stall_timeout_s=FAR_S, connections=2, authorization=lambda: next(values)
    )
    client = connect(worker, transport)
    read(client, worker)
    client.info("/m/f", soon())
    list(client.list("/m", recursive=False, timeout_s=FAR_S))
    client.put("/m/g", [b"x"], 1, append=False, timeout_s=FAR_S)
    sent = [request.fields["authorization"] for request in worker.requests]
    assert sent == ["Bearer one", "Bearer two", "Bearer two", "Bearer two"]


# -- ranges --------------------------------------------------------------------------------------------


def ranges_of(*cuts: tuple[int, int]) -> tuple[bytes, list[memoryview]]:
    files = [RangeFile("/m/f", "v", len(CONTENT))]
    body = encode_ranges(files, [FileRange(0, start, length) for start, length in cuts])
    return body, [memoryview(bytearray(length)) for _, length in cuts]


def test_ranges_arrive_in_any_order_small_and_large(worker: ScriptedWorker, connect: Connect) -> None:
    cuts = [(7 * n, n) for n in range(1, 500)] + [(0, len(CONTENT)), (3, 300_000)]
    body, wanted = ranges_of(*cuts)
    frames = connect(worker).start_ranges(body, soon()).finish(wanted)
    assert (frames.broken, frames.errors, sum(frames.done)) == (None, {}, len(cuts))
    assert [bytes(view) for view in wanted] == [CONTENT[start : start + length] for start, length in cuts]


def _frames(*frames: bytes) -> Behaviour:
    return lambda answer: answer.respond(200, b"".join(frames))


GOOD = script.data_frame(0, CONTENT[:10])
ALIVE = script.RANGE_FRAME.pack(0xFFFFFFFF, 2, 0, 0)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(_frames(GOOD), id="one missing"),
        pytest.param(_frames(GOOD, GOOD), id="one twice"),
        pytest.param(_frames(GOOD, script.data_frame(2, b"x")), id="one never asked for"),
        pytest.param(_frames(GOOD, script.data_frame(1, b"short")), id="wrong length"),
        pytest.param(_frames(GOOD, script.RANGE_FRAME.pack(1, 7, 0, 0)), id="unknown status"),
        pytest.param(_frames(GOOD, b"abc"), id="cut in a frame"),
        pytest.param(_frames(GOOD, script.data_frame(1, CONTENT[:10])[:-1]), id="cut in the data"),
    ],
)
def test_a_broken_answer_keeps_what_arrived_before(
    worker: ScriptedWorker, connect: Connect, behaviour: Behaviour
) -> None:
    worker.plan("POST", "/ranges", behaviour)
    body, wanted = ranges_of((0, 10), (0, 10))
    frames = connect(worker).start_ranges(body, soon()).finish(wanted)
    assert isinstance(frames.broken, WorkerUnavailable)
    assert frames.broken.reason == "protocol"
    assert list(frames.done) == [1, 0]
    assert bytes(wanted[0]) == CONTENT[:10]


def joined_frame(first: int, data: bytes, *, total: int | None = None) -> bytes:
    return script.RANGE_FRAME.pack(first, 3, len(data), checksum(data) if total is None else total) + data


@pytest.mark.parametrize("apart", [False, True], ids=["end to end", "apart"])
def test_frames_of_several_ranges_come_in_any_order(
    worker: ScriptedWorker, connect: Connect, apart: bool
) -> None:
    worker.plan(
        "POST",
        "/ranges",
        _frames(
            joined_frame(3, CONTENT[60:160]),
            ALIVE,
            joined_frame(0, CONTENT[:50]),
            script.data_frame(2, CONTENT[50:60]),
        ),
    )
    lengths = (20, 30, 10, 40, 60)
    body, views = ranges_of(*((sum(lengths[:n]), length) for n, length in enumerate(lengths)))
    whole = memoryview(bytearray(sum(lengths)))
    end_to_end = [whole[sum(lengths[:n]) : sum(lengths[: n + 1])] for n in range(len(lengths))]
    wanted = views if apart else end_to_end
    frames = connect(worker).start_ranges(body, soon()).finish(wanted, None if apart else whole)
    assert (frames.broken, frames.errors, list(frames.done)) == (None, {}, [1] * 5)
    assert b"".join(wanted) == CONTENT[:160]
    assert worker.requests[-1].query["joined"] == "1"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((joined_frame(0, CONTENT[:25]),), id="a part of a range"),
        pytest.param((joined_frame(0, CONTENT[:31]),), id="more than all"),
        pytest.param((GOOD, joined_frame(0, CONTENT[:20])), id="one twice"),
        pytest.param(
            (script.data_frame(1, CONTENT[10:20]), joined_frame(0, CONTENT[:20])), id="one of them was there"
        ),
        pytest.param((joined_frame(0, CONTENT[:20])[:-1],), id="cut"),
        pytest.param((joined_frame(0, b""),), id="nothing"),
    ],
)
def test_a_frame_of_several_ranges_that_cannot_be_breaks_off(
    worker: ScriptedWorker, connect: Connect, frames: tuple[bytes, ...]
) -> None:
    worker.plan("POST", "/ranges", _frames(*frames))
    body, wanted = ranges_of((0, 10), (10, 10), (20, 10))
    got = connect(worker).start_ranges(body, soon()).finish(wanted)
    assert isinstance(got.broken, WorkerUnavailable)
    assert got.broken.reason == "protocol"
    assert sum(got.done) == len(frames) - 1


def test_a_wrong_byte_in_a_frame_of_several_ranges_is_all_of_theirs(
    worker: ScriptedWorker, connect: Connect
) -> None:
    worker.plan(
        "POST",
        "/ranges",
        _frames(joined_frame(0, CONTENT[:20], total=1), script.data_frame(2, CONTENT[20:30])),
    )
    body, wanted = ranges_of((0, 10), (10, 10), (20, 10))
    frames = connect(worker).start_ranges(body, soon()).finish(wanted)
    assert (frames.broken, list(frames.done)) == (None, [0, 0, 1])
    assert {index: type(error) for index, error in frames.errors.items()} == {0: PageCorrupt, 1: PageCorrupt}


def test_single_ranges_may_fail_or_be_corrupt_and_signs_of_life_count_for_nothing(
    worker: ScriptedWorker, connect: Connect
) -> None:
    worker.plan(
        "POST",
        "/ranges",
        _frames(
            ALIVE,
            GOOD,
            script.data_frame(2, b"y" * 10, total=5),
            ALIVE,
            script.error_frame(1, StaleVersion("gone")),
        ),
    )
    body, wanted = ranges_of((0, 10), (10, 10), (20, 10))
    frames = connect(worker).start_ranges(body, soon()).finish(wanted)
    assert frames.broken is None
    assert list(frames.done) == [1, 0, 0]
    assert {index: type(error) for index, error in frames.errors.items()} == {1: StaleVersion, 2: PageCorrupt}


def test_ranges_refused_as_a_whole_raise(worker: ScriptedWorker, connect: Connect) -> None:
    worker.plan("POST", "/ranges", script.fail(AccessDenied("no")))
    body, wanted = ranges_of((0, 10))
    with pytest.raises(AccessDenied):
        connect(worker).start_ranges(body, soon()).finish(wanted)


# -- other requests ------------------------------------------------------------------------------------


def test_listing_and_its_errors(worker: ScriptedWorker, connect: Connect) -> None:
    client = connect(worker)
    assert [entry.path for entry in client.list("/m", recursive=True, timeout_s=FAR_S)] == ["/m/f"]
    with pytest.raises(FileNotFoundError):
        list(client.list("/none", recursive=False, timeout_s=FAR_S))
    worker.plan(
        "GET",
        "/list",
        script.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno\n\r\n0\r\n\r\n"),
    )
    with pytest.raises(WorkerUnavailable) as caught:
        list(client.list("/m", recursive=False, timeout_s=FAR_S))
    assert caught.value.reason == "protocol"


def test_an_upload_that_is_refused_in_the_middle_raises_the_answer(
    worker: ScriptedWorker, connect: Connect
) -> None:
    def refuse(answer: Answer) -> None:
        answer.respond_error(PermissionError(13, "read-only mount", "/m/f"))

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            sock.recv(1000)
            refuse(Answer(worker, worker_request, sock))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 20):
                pass
            sock.close()

        worker_request = script.Request("PUT", "/file", {}, {}, b"", False)
        thread = threading.Thread(target=serve)
        thread.start()
        client = connect(worker, port=listener.getsockname()[1])
        with pytest.raises(PermissionError, match="read-only"):
            client.put("/m/f", [bytes(1 << 20)] * 8, 8 << 20, append=False, timeout_s=FAR_S)
        client.close()
        thread.join(FAR_S)


def test_documents_that_are_none(worker: ScriptedWorker, connect: Connect) -> None:
    client = connect(worker)
    for body in (b"[1", b"\xff", b"{}", b'{"path": 5}'):
        worker.plan("GET", "/info", lambda answer, body=body: answer.respond(200, body))
        with pytest.raises(WorkerUnavailable) as caught:
            client.info("/m/f", soon())
        assert caught.value.reason == "protocol"
    assert client.info("/m/f", soon()) == FileInfo("/m/f", len(CONTENT), worker.files["/m/f"].version)


# -- same host -----------------------------------------------------------------------------------------


@pytest.fixture
def near(tmp_path: Path) -> Iterator[ScriptedWorker]:
    with ScriptedWorker({"/m/f": CONTENT}, unix_dir=tmp_path) as made:
        yield made


def test_everything_goes_over_the_unix_socket_of_a_worker_on_this_host(
    near: ScriptedWorker, connect: Connect
) -> None:
    client = connect(near)
    assert read(client, near) == CONTENT
    client.info("/m/f", soon())
    list(client.list("/m", recursive=False, timeout_s=FAR_S))
    assert client.link.is_local
    assert client.link.page_bytes == PAGE
    assert all(request.unix for request in near.requests)
    assert near.count("GET", "/worker") == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"boot_id": "another host"}, id="another host"),
        pytest.param({"socket_path": "/nowhere/kara.sock"}, id="no such socket"),
        pytest.param({"id": "somebody else"}, id="the socket of another worker"),
    ],
)
def test_the_port_serves_where_the_unix_socket_cannot(
    near: ScriptedWorker, connect: Connect, changes: dict[str, str]
) -> None:
    client = connect(near, **changes)
    for _ in range(3):
        assert read(client, near) == CONTENT
    assert not client.link.is_local
    assert not any(request.unix for request in near.requests if request.name == "/read")
    assert near.count("GET", "/worker") <= 1


def test_local_reads_can_be_turned_off(near: ScriptedWorker, connect: Connect) -> None:
    transport = Transport(connect_timeout_s=5, stall_timeout_s=FAR_S, connections=2, local=False)
    client = connect(near, transport)
    assert read(client, near) == CONTENT
    assert not any(request.unix for request in near.requests)


def test_a_worker_with_nothing_but_a_unix_socket_is_unavailable_when_that_is_gone(
    near: ScriptedWorker, connect: Connect
) -> None:
    client = connect(near, port=0)
    assert read(client, near) == CONTENT
    near.refuse()
    with pytest.raises(WorkerUnavailable) as caught:
        read(client, near)
    assert caught.value.reason in ("refused", "reset")
    near.start()
    assert read(client, near) == CONTENT


def test_descriptors_are_counted_against_the_list(near: ScriptedWorker, connect: Connect) -> None:
    client, file = connect(near), CachedFile(near.file("/m/f"))
    near.cached = {0, 2}
    client.info("/m/f", soon())  # makes the link local
    passed = client.descriptors(file, 0, 64, soon())
    assert [(page.index, page.place) for page in passed] == [(0, None), (2, None)]
    for page in passed:
        os.close(page.fd)

    def more_pages_than_descriptors(answer: Answer) -> None:
        read_end, write_end = os.pipe()
        body = b'{"pages": [0, 1]}'
        message = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        socket.send_fds(answer.sock, [message], [read_end])
        os.close(read_end)
        os.close(write_end)

    near.settle()
    before = len(os.listdir("/proc/self/fd"))
    near.plan("GET", "/pages", more_pages_than_descriptors)
    with pytest.raises(WorkerUnavailable, match="1 descriptors for pages"):
        client.descriptors(file, 0, 64, soon())
    near.settle()
    assert len(os.listdir("/proc/self/fd")) == before
