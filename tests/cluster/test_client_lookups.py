"""Facts and bytes in one answer, from workers that are older, lie or break off: right bytes, counted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest
from scripted_worker import Answer, FixedMembership, ScriptedWorker, data_frame, error_frame

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import UnderStoreError, WorkerBusy, WorkerUnavailable
from kara_cache.file_answer import encode_document
from kara_cache.wire import RANGE_FRAME

CONTENTS = {f"/m/{number}": os.urandom(1 + 37 * number) for number in range(12)} | {"/m/empty": b""}
PATH = "/m/7"
Behaviour = Callable[[Answer], None]


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    with ScriptedWorker(CONTENTS) as made:
        yield made


@pytest.fixture
def client(worker: ScriptedWorker) -> Iterator[CacheClient]:
    config = ClientConfig(stall_timeout_s=20.0)
    with CacheClient(config, membership=FixedMembership(worker.member())) as made:
        yield made


def with_bytes(
    answer: Answer, *, wrong: bool = False, count: int | None = None, extra: int = 0, document: bytes = b""
) -> None:
    query, worker = answer.request.query, answer.worker
    data = worker.content(query["path"])
    if not data:
        answer.honest()
        return
    document = document or encode_document(worker.file(query["path"]))
    sent = bytes([data[0] ^ 1]) + data[1:] if wrong else data
    answer.respond(
        200,
        document + sent + bytes(extra),
        f"X-Kara-Bytes: {len(data) if count is None else count}",
        f"X-Kara-Page: {worker.page_bytes}",
        f"X-Kara-Sum: {answer.sums(data, 0)}",
    )


def in_frames(answer: Answer, change: Callable[[int, bytes], bytes] = lambda index, frame: frame) -> None:
    frames = []
    for index, path in enumerate(answer.request.body.decode().split("\n")):
        data = answer.worker.content(path)
        frames.append(change(index, data_frame(index, encode_document(answer.worker.file(path)) + data)))
    answer.respond(200, b"".join(reversed(frames)))


def opened(client: CacheClient, path: str = PATH) -> bytes:
    file, content = client.open_file(path)
    return client.read(file, 0, file.size) if content is None else content


def test_bytes_come_with_the_facts(worker: ScriptedWorker, client: CacheClient) -> None:
    worker.always("GET", "/info", with_bytes)
    assert opened(client) == CONTENTS[PATH]
    assert worker.count("GET", "/read") == 0
    assert client.metrics.reads["worker"] == 1
    assert client.metrics.read_bytes["worker"] == len(CONTENTS[PATH])


def test_an_older_worker_is_asked_for_the_bytes(worker: ScriptedWorker, client: CacheClient) -> None:
    assert opened(client) == CONTENTS[PATH]
    found = client.look_up([*CONTENTS, "/m/none"], contents=True)
    assert isinstance(found.pop("/m/none"), FileNotFoundError)
    assert {path: answer[0] for path, answer in found.items()} == {p: worker.file(p) for p in CONTENTS}
    assert [path for path, answer in found.items() if answer[1] is not None] == ["/m/empty"]
    assert client.metrics.fallbacks == {}, "not to know a request is no failure"


def test_wrong_bytes_with_the_facts_are_read_again(worker: ScriptedWorker, client: CacheClient) -> None:
    worker.always("GET", "/info", lambda answer: with_bytes(answer, wrong=True))
    assert opened(client) == CONTENTS[PATH]
    assert client.metrics.fallbacks == {"corrupt": 1}


WRONG = [
    pytest.param(lambda answer: with_bytes(answer, count=-1), id="no number"),
    pytest.param(lambda answer: with_bytes(answer, count=10**9), id="more than the body"),
    pytest.param(lambda answer: with_bytes(answer, count=5), id="less than the file"),
    pytest.param(lambda answer: with_bytes(answer, extra=3), id="bytes too many"),
    pytest.param(lambda answer: with_bytes(answer, document=b"no json\n"), id="no document"),
]


@pytest.mark.parametrize("behaviour", WRONG)
def test_an_answer_that_makes_no_sense_is_a_failure_of_the_worker(
    worker: ScriptedWorker, behaviour: Behaviour
) -> None:
    worker.always("GET", "/info", behaviour)
    with ScriptedWorker(CONTENTS, identity="x") as second:
        second.always("GET", "/info", behaviour)
        membership = FixedMembership(worker.member(), second.member())
        with CacheClient(ClientConfig(stall_timeout_s=20.0), membership=membership) as client:
            with pytest.raises(WorkerUnavailable, match="/m/7"):
                client.open_file(PATH)
            assert client.metrics.fallbacks == {"protocol": 2}
            second.always("GET", "/info", with_bytes)
            assert opened(client) == CONTENTS[PATH]


def damaged(index: int, frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 1]) if index == 3 else frame


def refused(index: int, frame: bytes) -> bytes:
    if index == 2:
        return error_frame(index, WorkerBusy("no thread"))
    return error_frame(index, UnderStoreError("503")) if index == 4 else frame


def alive(index: int, frame: bytes) -> bytes:
    return RANGE_FRAME.pack(0xFFFFFFFF, 2, 0, 0) + frame


def lost(index: int, frame: bytes) -> bytes:
    return b"" if index == 5 else frame


def twice(index: int, frame: bytes) -> bytes:
    return frame * 2 if index == 5 else frame


def foreign(index: int, frame: bytes) -> bytes:
    return data_frame(4711, b"x") if index == 5 else frame


def no_document(index: int, frame: bytes) -> bytes:
    return data_frame(index, json.dumps({"path": 1}).encode() + b"\n") if index == 5 else frame


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (alive, {}),
        (damaged, {}),
        (refused, {}),
        (lost, {"protocol": 1}),
        (twice, {"protocol": 1}),
        (foreign, {"protocol": 1}),
        (no_document, {"protocol": 1}),
    ],
)
def test_many_files_whatever_happens_to_their_frames(
    worker: ScriptedWorker,
    client: CacheClient,
    change: Callable[[int, bytes], bytes],
    reasons: dict[str, int],
) -> None:
    worker.always("POST", "/files", lambda answer: in_frames(answer, change))
    worker.always("GET", "/info", with_bytes)
    found = client.look_up([*CONTENTS], contents=True)
    assert {path: answer[1] for path, answer in found.items()} == CONTENTS
    assert worker.count("POST", "/files") == 1
    assert client.metrics.fallbacks == reasons


def test_what_broke_off_is_asked_for_alone(worker: ScriptedWorker, client: CacheClient) -> None:
    def broken(answer: Answer) -> None:
        frame = data_frame(0, encode_document(worker.file("/m/0")) + CONTENTS["/m/0"])
        rest = data_frame(1, encode_document(worker.file("/m/1")) + CONTENTS["/m/1"])[:30]
        answer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + frame + rest)
        raise ConnectionAbortedError

    worker.plan("POST", "/files", broken)
    worker.always("GET", "/info", with_bytes)
    paths = [path for path in CONTENTS if path != "/m/empty"]
    found = client.look_up(paths, contents=True)
    assert {path: answer[1] for path, answer in found.items()} == {path: CONTENTS[path] for path in paths}
    assert client.metrics.fallbacks == {"reset": 1}


def test_bad_paths_are_answers_of_their_own(worker: ScriptedWorker, client: CacheClient) -> None:
    worker.always("POST", "/files", in_frames)
    found = client.look_up(["/m/1", "m/2", "/m/a\nb", "/m/../x"], contents=True)
    assert found["/m/1"] == (worker.file("/m/1"), CONTENTS["/m/1"])
    assert all(isinstance(found[path], ValueError) for path in ("m/2", "/m/a\nb", "/m/../x"))
