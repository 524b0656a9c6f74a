"""A large file in one call goes over several connections, and every piece finds its own way."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import scripted_worker as script
from scripted_worker import Answer, Behaviour, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import WorkerUnavailable
from kara_cache.placement import Placement
from kara_cache.stripe import stripe_key

FAR_S = 30.0
WAIT_S = 20.0
PATH = "/m/f"
MIB = 1 << 20
CONTENT = os.urandom(MIB) * 17 + b"the end"
PIECES = 4  # of a file of this size; as many connections

Connect = Callable[..., CacheClient]


@pytest.fixture
def workers() -> Iterator[dict[str, ScriptedWorker]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(ScriptedWorker({PATH: CONTENT}, identity=name)) for name in "abc"}


@pytest.fixture
def owners(workers: dict[str, ScriptedWorker]) -> list[ScriptedWorker]:
    order = Placement.build(dict.fromkeys(workers, 1)).owners(stripe_key(PATH, 0), 3)
    return [workers[name] for name in order]


@pytest.fixture
def connect(workers: dict[str, ScriptedWorker]) -> Iterator[Connect]:
    membership = FixedMembership(*(worker.member() for worker in workers.values()))
    with ExitStack() as stack:

        def make(**options: Any) -> CacheClient:
            config = ClientConfig(**{"stall_timeout_s": FAR_S, "suspect_s": 600.0, **options})
            return stack.enter_context(CacheClient(config, membership=membership))

        yield make


def test_pieces_are_asked_for_at_the_same_time(owners: list[ScriptedWorker], connect: Connect) -> None:
    together = threading.Barrier(PIECES, timeout=WAIT_S)

    def wait(answer: Answer) -> None:
        together.wait()
        answer.honest()

    client, file = connect(), owners[0].file(PATH)
    owners[0].always("GET", "/read", wait)
    buffer = bytearray(len(CONTENT) + 100)
    assert client.read_into(file, 0, buffer) == len(CONTENT)
    assert buffer[: len(CONTENT)] == CONTENT
    assert owners[0].count("GET", "/read") == PIECES
    counts = client.metrics
    assert (counts.reads["worker"], counts.read_bytes["worker"]) == (PIECES, len(CONTENT))


@pytest.mark.parametrize(("start", "length"), [(0, 9 * MIB), (3, 12 * MIB + 5), (5 * MIB + 1, 12 * MIB)])
def test_any_range_is_right(owners: list[ScriptedWorker], connect: Connect, start: int, length: int) -> None:
    assert connect().read(owners[0].file(PATH), start, length) == CONTENT[start : start + length]


def test_what_is_not_large_is_one_request(owners: list[ScriptedWorker], connect: Connect) -> None:
    assert connect().read(owners[0].file(PATH), 7, 8 * MIB) == CONTENT[7 : 8 * MIB + 7]
    assert owners[0].count("GET", "/read") == 1


def test_a_client_of_few_connections_takes_one(owners: list[ScriptedWorker], connect: Connect) -> None:
    client = connect(connections_per_worker=1)
    assert client.read(owners[0].file(PATH), 0, len(CONTENT)) == CONTENT
    assert (owners[0].count("GET", "/read"), client.metrics.fallbacks) == (1, {})


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param(script.reset, "reset", id="reset"),
        pytest.param(script.stall_after(200_000), "timeout", id="silence in the body"),
        pytest.param(script.flip(12_345), "corrupt", id="corrupt"),
    ],
)
def test_pieces_of_a_failing_owner_come_from_the_next(
    owners: list[ScriptedWorker], connect: Connect, behaviour: Behaviour, reason: str
) -> None:
    client, file = connect(stall_timeout_s=1.0), owners[0].file(PATH)
    owners[0].always("GET", "/read", behaviour)
    assert client.read(file, 0, len(CONTENT)) == CONTENT
    assert client.metrics.fallbacks.keys() == {reason}
    assert sum(worker.count("GET", "/read") for worker in owners[1:]) >= PIECES


def test_one_piece_alone_may_go_another_way(owners: list[ScriptedWorker], connect: Connect) -> None:
    def break_one(answer: Answer) -> None:
        if answer.request.query["start"] == "0":
            answer.respond_error(WorkerUnavailable("ill"))
        else:
            answer.honest()

    client = connect()
    owners[0].always("GET", "/read", break_one)
    assert client.read(owners[0].file(PATH), 0, len(CONTENT)) == CONTENT
    assert sum(client.metrics.fallbacks.values()) == 1
    asked = [request for worker in owners[1:] for request in worker.requests if request.name == "/read"]
    assert "0" in [request.query["start"] for request in asked]


def test_an_answer_ends_the_read_in_the_callers_thread(
    owners: list[ScriptedWorker], connect: Connect
) -> None:
    owners[0].always("GET", "/read", script.fail(PermissionError(13, "Permission denied", PATH)))
    with pytest.raises(PermissionError):
        connect().read(owners[0].file(PATH), 0, len(CONTENT))
