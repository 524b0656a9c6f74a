"""Changes of files through the cache, with workers that fail before, while and after they are asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import scripted_worker as script
from scripted_worker import Answer, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import UnderStoreError, WorkerBusy, WorkerUnavailable
from kara_cache.file_writes import SPOOL_BYTES
from kara_cache.placement import Placement
from kara_cache.stripe import stripe_key
from kara_cache.ufs.base import FileInfo, UnderStore
from kara_cache.ufs.memory import MemoryStore

FAR_S = 30.0
PATH = "/m/new"


class Pair:
    """Two workers that share nothing: what one has taken, the other does not know."""

    def __init__(self) -> None:
        self.workers = {name: ScriptedWorker(identity=name).start() for name in ("a", "b")}
        self.membership = FixedMembership(*(worker.member() for worker in self.workers.values()))
        order = Placement.build({"a": 1, "b": 1}).owners(stripe_key(PATH, 0), 2)
        self.first, self.second = (self.workers[name] for name in order)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for worker in made.workers.values():
        worker.close()


Connect = Callable[..., CacheClient]


@pytest.fixture
def connect(pair: Pair) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(*, fallback: Any = None, **options: Any) -> CacheClient:
            config = ClientConfig(**{"stall_timeout_s": FAR_S, **options})
            return stack.enter_context(CacheClient(config, membership=pair.membership, fallback=fallback))

        yield make


@pytest.mark.parametrize("size", [0, 5, SPOOL_BYTES + 100_001])
def test_what_was_written_is_read(pair: Pair, connect: Connect, size: int) -> None:
    client, data = connect(), os.urandom(size)
    info = client.write(PATH, data)
    assert (info.path, info.size) == (PATH, size)
    assert pair.first.files[PATH].data == data
    assert client.read(client.info(PATH), 0, size + 1) == data


def test_nothing_is_sent_before_the_end_of_a_block_and_nothing_after_an_exception(
    pair: Pair, connect: Connect
) -> None:
    client = connect()
    with suppress(KeyError), client.open_writer(PATH) as writer:
        writer.write(b"abc")
        raise KeyError
    assert pair.first.count("PUT", "/file") == 0
    with pytest.raises(ValueError, match="committed or aborted"):
        writer.write(b"d")
    with client.open_writer(PATH) as writer:
        writer.write(bytearray(b"abc"))
        assert pair.first.count("PUT", "/file") == 0
        writer.write(memoryview(b"def"))
        assert writer.commit().size == writer.commit().size == 6
        writer.abort()
    assert pair.first.files[PATH].data == b"abcdef"
    with client.open_writer(PATH) as writer:
        writer.write(b"xyz")
    assert pair.first.files[PATH].data == b"xyz"
    with client.open_writer(PATH) as writer:
        writer.write(b"never")
        writer.abort()
    assert pair.first.files[PATH].data == b"xyz"


def _take_then_reset(answer: Answer) -> None:
    recorded: list[bytes] = []
    silent = Answer(answer.worker, answer.request, answer.sock)
    silent.send = recorded.append  # type: ignore[method-assign]
    answer.worker.answer(silent)
    script.reset(answer)


@pytest.mark.parametrize(
    "behaviour",
    [
        script.reset,
        _take_then_reset,
        script.stall,
        script.fail(WorkerBusy("full")),
        script.fail(UnderStoreError("503")),
    ],
    ids=["reset", "reset after it was done", "silence", "busy", "store error"],
)
def test_a_replacement_is_sent_to_another_worker(
    pair: Pair, connect: Connect, behaviour: script.Behaviour
) -> None:
    client = connect(timeout_s=1.0) if behaviour is script.stall else connect()
    pair.first.plan("PUT", "/file", behaviour)
    assert client.write(PATH, b"content").size == 7
    assert pair.second.files[PATH].data == b"content"


def test_a_refused_write_is_an_answer(pair: Pair, connect: Connect) -> None:
    pair.first.plan("PUT", "/file", script.fail(PermissionError(13, "the mount is read-only", PATH)))
    with pytest.raises(PermissionError, match="read-only"):
        connect().write(PATH, b"x")
    assert pair.second.count("PUT", "/file") == 0


def append(client: CacheClient, data: bytes) -> FileInfo:
    with client.open_writer(PATH, append=True) as writer:
        writer.write(data)
        return writer.commit()


def test_append(pair: Pair, connect: Connect) -> None:
    client = connect()
    append(client, b"one")
    assert append(client, b"two").size == 6
    assert pair.first.files[PATH].data == b"onetwo"


def test_an_append_that_was_never_sent_goes_to_another_worker(pair: Pair, connect: Connect) -> None:
    pair.first.refuse()
    assert append(connect(), b"one").size == 3
    pair.second.plan("PUT", "/file", script.fail(WorkerBusy("full")))
    with pytest.raises(WorkerUnavailable, match="full"):
        append(connect(), b"one")


def test_an_append_that_may_have_happened_is_never_sent_again(pair: Pair, connect: Connect) -> None:
    pair.first.plan("PUT", "/file", _take_then_reset)
    with pytest.raises(OSError, match="not known") as caught:
        append(connect(), b"one")
    assert caught.value.filename == PATH
    assert pair.first.files[PATH].data == b"one"
    assert pair.second.count("PUT", "/file") == 0


def test_deleting_twice_because_an_answer_was_lost_is_no_error(pair: Pair, connect: Connect) -> None:
    for worker in pair.workers.values():
        worker.files[PATH] = script._File(b"x", "v")
    client = connect()
    pair.first.plan("DELETE", "/file", _take_then_reset)
    del pair.second.files[PATH]
    client.delete(PATH)
    with pytest.raises(FileNotFoundError):
        client.delete("/m/never")


def test_directories(pair: Pair, connect: Connect) -> None:
    connect().make_directory(PATH)
    assert pair.first.count("POST", "/directory") == 1


class OwnStore:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def __call__(self, path: str) -> tuple[UnderStore, str]:
        return self.store, path.removeprefix("/m/")


def test_the_own_store_takes_what_no_worker_can(pair: Pair, connect: Connect) -> None:
    own = OwnStore()
    client = connect(fallback=own)
    pair.first.refuse()
    pair.second.refuse()
    info = client.write(PATH, b"content")
    assert (info.path, info.size) == (PATH, 7)
    assert client.read(info, 0, 10) == b"content"
    client.make_directory("/m/d")
    client.delete(PATH)
    with pytest.raises(FileNotFoundError):
        client.info(PATH)


# -- calls to all workers, and to any ------------------------------------------------------------------


def test_free_is_told_to_all_and_says_who_was_not_reached(pair: Pair, connect: Connect) -> None:
    client = connect()
    assert client.free("/m/d", recursive=True) == (4, 200)
    assert pair.first.requests[-1].query == {"path": "/m/d", "recursive": "1"}
    pair.second.refuse()
    with pytest.raises(WorkerUnavailable, match=f"2 pages freed, but not on all workers: {pair.second.id}"):
        client.free(PATH)


def test_urls_are_resolved_by_the_mounts_that_workers_tell(pair: Pair, connect: Connect) -> None:
    client = connect()
    assert client.resolve("s3://bucket/data/x/y") == "/m/x/y"
    assert client.resolve("s3://bucket/data/z") == "/m/z"
    asked = pair.first.count("GET", "/mounts") + pair.second.count("GET", "/mounts")
    assert asked == 1
    with pytest.raises(ValueError, match="no mount covers"):
        client.resolve("s3://other/x")
    assert client.mounts()[0]["name"] == "m"


def test_status_and_explanation_name_workers_that_do_not_answer(pair: Pair, connect: Connect) -> None:
    client = connect()
    client.write(PATH, b"content")
    pair.second.files = dict(pair.first.files)
    pair.second.refuse()
    status = {entry["id"]: entry for entry in client.worker_status()}
    assert status[pair.first.id]["state"] == "active"
    assert "refused" in status[pair.second.id]["error"]
    explained = client.explain(PATH)
    assert explained["info"]["size"] == 7
    assert explained["owners"] == [{"stripe": 0, "workers": [pair.first.id, pair.second.id]}]
    assert explained["workers"][0]["cached"] == 1
    assert "refused" in explained["workers"][1]["error"]
    assert {worker.id for worker in client.workers().workers} == {"a", "b"}
