"""Reads through a cluster in which workers die, stall, lie and refuse: right bytes, counted detours."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import scripted_worker as script
from scripted_worker import Answer, Behaviour, FixedMembership, ScriptedWorker

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig
from kara_cache.errors import (
    AccessDenied,
    CacheError,
    ConfigError,
    PageCorrupt,
    StaleVersion,
    UnderStoreError,
    WorkerBusy,
    WorkerUnavailable,
)
from kara_cache.membership.base import MemberState
from kara_cache.placement import Placement
from kara_cache.stripe import STRIPE_BYTES, stripe_key
from kara_cache.ufs.base import FileInfo, UnderStore
from kara_cache.ufs.memory import MemoryStore

FAR_S = 30.0
PATH = "/m/f"
CONTENT = os.urandom(400_000)


class Trio:
    """Three workers with the same files, and the order in which they own PATH."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.workers = {name: ScriptedWorker(files, identity=name).start() for name in ("a", "b", "c")}
        self.membership = FixedMembership(*(worker.member() for worker in self.workers.values()))

    def ranked(self, path: str = PATH, stripe: int = 0) -> list[ScriptedWorker]:
        order = Placement.build(dict.fromkeys(self.workers, 1)).owners(stripe_key(path, stripe), 3)
        return [self.workers[name] for name in order]

    def member_states(self, **states: MemberState) -> None:
        self.membership.replace(
            *(
                replace(worker.member(), state=states.get(name, MemberState.ACTIVE))
                for name, worker in self.workers.items()
            )
        )

    def reads(self) -> dict[str, int]:
        return {name: worker.count("GET", "/read") for name, worker in self.workers.items()}


@pytest.fixture
def trio() -> Iterator[Trio]:
    made = Trio({PATH: CONTENT})
    yield made
    for worker in made.workers.values():
        worker.close()


Connect = Callable[..., CacheClient]


@pytest.fixture
def connect(trio: Trio) -> Iterator[Connect]:
    with ExitStack() as stack:

        def make(*, fallback: Any = None, **options: Any) -> CacheClient:
            config = ClientConfig(**{"stall_timeout_s": FAR_S, "suspect_s": 600.0, **options})
            client = CacheClient(config, membership=trio.membership, fallback=fallback)
            return stack.enter_context(client)

        yield make


def everything(client: CacheClient, path: str = PATH) -> bytes:
    return client.read(client.info(path), 0, 1 << 30)


FAILURES = [
    pytest.param(script.reset, "reset", True, id="reset"),
    pytest.param(script.cut_after(200_000), "reset", True, id="cut in the body"),
    pytest.param(script.stall, "timeout", True, id="silence"),
    pytest.param(script.stall_after(200_000), "timeout", True, id="silence in the body"),
    pytest.param(script.raw(b"what?\r\n\r\n"), "protocol", True, id="protocol"),
    pytest.param(script.flip(12_345), "corrupt", False, id="corrupt"),
    pytest.param(script.fail(WorkerBusy("draining")), "busy", False, id="busy"),
    pytest.param(script.fail(StaleVersion("replaced")), "stale", False, id="stale"),
    pytest.param(script.fail(UnderStoreError("503")), "store_error", False, id="store error"),
]


@pytest.mark.parametrize(("behaviour", "reason", "suspect"), FAILURES)
def test_a_failing_owner_costs_no_read(
    trio: Trio, connect: Connect, behaviour: Behaviour, reason: str, suspect: bool
) -> None:
    first, second, _ = trio.ranked()
    client, file = connect(stall_timeout_s=0.2), first.file(PATH)
    # always: a reset of a connection that was used before (for the mounts) is retried once, silently
    first.always("GET", "/read", behaviour)
    assert client.read(file, 0, len(CONTENT)) == CONTENT
    first.always("GET", "/read", None)
    assert client.metrics.fallbacks == {reason: 1}
    assert client.metrics.reads == {"worker": 1, "local": 0, "store": 0, "error": 0}
    assert second.requests[-1].query.get("keep") is None, "the next owner keeps what it fetched"
    asked = trio.reads()[first.id]
    assert client.read(file, 5, 100) == CONTENT[5:105]
    assert trio.reads()[first.id] == asked + (0 if suspect else 1)


def test_a_refused_connection_and_an_unknown_name_cost_no_read(trio: Trio, connect: Connect) -> None:
    first, second, third = trio.ranked()
    first.refuse()
    trio.membership.replace(
        first.member(), replace(second.member(), host="no-such-host.invalid"), third.member()
    )
    client = connect()
    assert everything(client) == CONTENT
    assert client.metrics.fallbacks == {"refused": 1, "dns": 1}


def test_the_middle_of_an_open_file_is_no_special_place(trio: Trio, connect: Connect) -> None:
    first, _, _ = trio.ranked()
    client = connect()
    file, buffer, out = client.info(PATH), bytearray(37_000), bytearray()
    while count := client.read_into(file, len(out), buffer):
        out += buffer[:count]
        if len(out) == 5 * len(buffer):
            first.refuse()
    assert bytes(out) == CONTENT
    assert sum(client.metrics.fallbacks.values()) == 1


def test_a_corrupt_page_is_reported_to_its_worker(trio: Trio, connect: Connect) -> None:
    first, _, _ = trio.ranked()
    first.plan("GET", "/read", script.flip(0))
    client = connect()
    assert client.read(client.info(PATH), 1000, 50) == CONTENT[1000:1050]
    (report,) = [request for request in first.requests if request.name == "/verify"]
    assert (report.query["start"], report.query["length"]) == ("1000", "50")


def test_workers_beyond_the_second_owner_read_through(trio: Trio, connect: Connect) -> None:
    first, second, third = trio.ranked()
    client, file = connect(), third.file(PATH)
    first.refuse()
    second.refuse()
    assert client.read(file, 0, len(CONTENT)) == CONTENT
    assert third.requests[-1].query["keep"] == "0"


@pytest.mark.parametrize("state", [MemberState.PASSIVE, MemberState.DRAINING])
def test_members_that_take_no_work_are_passed_over_but_keep_their_place(
    trio: Trio, connect: Connect, state: MemberState
) -> None:
    first, second, _ = trio.ranked()
    trio.member_states(**{first.id: state})
    client = connect()
    assert everything(client) == CONTENT
    assert trio.reads()[first.id] == 0
    assert trio.reads()[second.id] == 1
    trio.member_states()
    assert everything(client) == CONTENT
    assert trio.reads()[first.id] == 1


def test_a_worker_that_moved_is_found_at_its_new_address(trio: Trio, connect: Connect) -> None:
    first, _, _ = trio.ranked()
    client = connect()
    assert everything(client) == CONTENT
    first.refuse()
    first.port = 0
    first.start()
    trio.member_states()
    assert everything(client) == CONTENT
    assert client.metrics.fallbacks == {}
    assert trio.reads()[first.id] == 2


def test_all_suspect_workers_are_better_than_none(trio: Trio, connect: Connect) -> None:
    client, file = connect(), trio.workers["a"].file(PATH)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.reset)
    with pytest.raises(WorkerUnavailable):
        client.read(file, 0, 10)
    assert client.metrics.fallbacks == {"reset": 3}
    for worker in trio.workers.values():
        worker.always("GET", "/read", None)
    assert client.read(file, 0, 10) == CONTENT[:10]


def test_passive_members_are_better_than_none(trio: Trio, connect: Connect) -> None:
    trio.member_states(a=MemberState.PASSIVE, b=MemberState.PASSIVE, c=MemberState.PASSIVE)
    assert everything(connect()) == CONTENT


def test_when_nothing_answers_the_error_says_who_was_asked_and_why_each_failed(
    trio: Trio, connect: Connect
) -> None:
    client = connect()
    file = client.info(PATH)
    for worker in trio.workers.values():
        worker.refuse()
    with pytest.raises(WorkerUnavailable) as caught:
        client.read(file, 0, 10)
    message = str(caught.value)
    assert PATH in message
    assert caught.value.reason == "refused"
    for worker in trio.workers.values():
        assert f"{worker.id}: 127.0.0.1:{worker.port}" in message
    assert client.metrics.reads["error"] == 1


def test_without_any_worker_the_error_says_so(trio: Trio, connect: Connect) -> None:
    trio.membership.replace()
    with pytest.raises(WorkerUnavailable, match="no worker is known"):
        connect().info(PATH)


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file", PATH), PermissionError(13, "denied", PATH), AccessDenied("token")],
    ids=lambda error: type(error).__name__,
)
def test_answers_are_final(trio: Trio, connect: Connect, error: Exception) -> None:
    first, _, _ = trio.ranked()
    client = connect()
    file = client.info(PATH)
    first.plan("GET", "/read", script.fail(error))
    with pytest.raises(type(error)):
        client.read(file, 0, 10)
    assert sum(trio.reads().values()) == 1
    assert client.metrics.fallbacks == {}


def test_a_version_that_is_gone_is_asked_of_two_owners_and_then_raised(trio: Trio, connect: Connect) -> None:
    client = connect()
    file = client.info(PATH)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.fail(StaleVersion("another etag")))
    with pytest.raises(StaleVersion, match="open it again"):
        client.read(file, 0, 10)
    assert sum(trio.reads().values()) == 2


def test_a_store_error_is_seen_through_two_workers_and_then_raised(trio: Trio, connect: Connect) -> None:
    client = connect()
    file = client.info(PATH)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.fail(UnderStoreError("s3 said 503")))
    with pytest.raises(UnderStoreError, match="s3 said 503"):
        client.read(file, 0, 10)
    assert sum(trio.reads().values()) == 2
    assert client.metrics.fallbacks == {"store_error": 2}


def test_a_call_ends_in_time_though_every_worker_stalls(trio: Trio, connect: Connect) -> None:
    """Each stall alone would outlast the test."""
    client = connect(timeout_s=0.5)
    file = client.info(PATH)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.stall)
    with pytest.raises(WorkerUnavailable) as caught:
        client.read(file, 0, 10)
    assert caught.value.reason == "timeout"


def test_one_reader_probes_a_suspect_while_the_others_stay_away(trio: Trio, connect: Connect) -> None:
    first, _, _ = trio.ranked()
    client = connect(suspect_s=0.0001, stall_timeout_s=0.3)
    file = client.info(PATH)
    first.plan("GET", "/read", script.stall, script.stall)
    threads = [threading.Thread(target=client.read, args=(file, 0, 10)) for _ in range(2)]
    client.read(file, 0, 10)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(FAR_S)
    assert client.metrics.reads["error"] == 0


# -- the caller's own store ----------------------------------------------------------------------------


class OwnStore:
    """A store that the caller opened itself, as `fallback` gives it."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.store = MemoryStore()
        self.info = self.store.write("f", content)
        self.asked = 0

    def __call__(self, path: str) -> tuple[UnderStore, str]:
        self.asked += 1
        mount, _, below = path[1:].partition("/")
        if mount != "m":
            raise LookupError(path)
        return self.store, below

    def file(self) -> FileInfo:
        return replace(self.info, path=PATH)


def test_the_own_store_serves_when_no_worker_can(trio: Trio, connect: Connect) -> None:
    own = OwnStore()
    client = connect(fallback=own)
    for worker in trio.workers.values():
        worker.refuse()
    assert client.info(PATH) == own.file()
    assert client.read(own.file(), 7, 1000) == CONTENT[7:1007]
    assert client.read_ranges([(own.file(), 0, 5), (own.file(), 399_998, 50)]) == [CONTENT[:5], CONTENT[-2:]]
    assert [entry.path for entry in client.list("/m")] == [PATH]
    assert client.metrics.reads["store"] == 3
    assert client.metrics.read_bytes["store"] == 1007


def test_the_own_store_is_asked_for_the_same_version(trio: Trio, connect: Connect) -> None:
    own = OwnStore()
    old = own.file()
    own.store.write("f", b"another content")
    client = connect(fallback=own)
    for worker in trio.workers.values():
        worker.refuse()
    with pytest.raises(StaleVersion, match="open it again"):
        client.read(old, 0, 10)


def test_suspects_are_not_asked_before_the_own_store(trio: Trio, connect: Connect) -> None:
    own = OwnStore()
    client = connect(fallback=own)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.reset)
    for _ in range(3):
        assert client.read(own.file(), 0, 10) == CONTENT[:10]
    assert client.metrics.fallbacks == {"reset": 3}


def test_an_own_store_that_does_not_know_the_path_is_none(trio: Trio, connect: Connect) -> None:
    for worker in trio.workers.values():
        worker.refuse()
    with pytest.raises(WorkerUnavailable):
        connect(fallback=OwnStore()).info("/other/f")


def without_library(path: str) -> tuple[UnderStore, str]:
    raise ConfigError("s3:// needs boto3: pip install kara-cache[s3]")


@pytest.mark.parametrize("verb", ["info", "list", "append"])
def test_a_store_that_cannot_be_opened_hides_not_why_workers_failed(
    trio: Trio, connect: Connect, verb: str
) -> None:
    for worker in trio.workers.values():
        worker.refuse()
    client = connect(fallback=without_library)

    def append() -> None:
        with client.open_writer(PATH, append=True) as out:
            out.write(b"x")

    ask = {"info": lambda: client.info(PATH), "list": lambda: list(client.list("/m")), "append": append}
    with pytest.raises(ConfigError, match=r"needs boto3.*because .*nothing could answer") as told:
        ask[verb]()
    workers = told.value.__cause__
    assert isinstance(workers, WorkerUnavailable)
    assert all(f"{name}: " in str(workers) for name in trio.workers)
    assert "boto3" in str(workers.__cause__)


def test_a_store_that_cannot_be_opened_keeps_nobody_from_suspects(trio: Trio, connect: Connect) -> None:
    client = connect(fallback=without_library)
    file = trio.workers["a"].file(PATH)
    for worker in trio.workers.values():
        worker.always("GET", "/read", script.reset)
    with pytest.raises(ConfigError):
        client.read(file, 0, 10)
    for worker in trio.workers.values():
        worker.always("GET", "/read", None)
    assert client.read(file, 0, 10) == CONTENT[:10]


def test_missing_in_the_own_store_is_an_answer(trio: Trio, connect: Connect) -> None:
    for worker in trio.workers.values():
        worker.refuse()
    with pytest.raises(FileNotFoundError):
        connect(fallback=OwnStore()).info("/m/none")


def test_an_honest_answer_needs_no_own_store(trio: Trio, connect: Connect) -> None:
    own = OwnStore()
    client = connect(fallback=own)
    assert everything(client) == CONTENT
    with pytest.raises(FileNotFoundError):
        client.info("/m/none")
    assert own.asked == 0


# -- stripes -------------------------------------------------------------------------------------------


def test_a_read_across_stripes_goes_to_the_owner_of_each(connect: Connect, trio: Trio) -> None:
    size = 4 * STRIPE_BYTES + 100
    hollow = bytes(size)
    for worker in trio.workers.values():
        worker.files["/m/large"] = script._File(hollow, "v")
    client = connect()
    file = client.info("/m/large")
    spans = [(stripe + 1) * STRIPE_BYTES - 50 for stripe in range(4)]
    for start in spans:
        assert client.read(file, start, 100) == hollow[:100]
    asked = {
        (int(request.query["start"]) // STRIPE_BYTES, worker.id)
        for worker in trio.workers.values()
        for request in worker.requests
        if request.name == "/read"
    }
    assert asked == {(stripe, trio.ranked("/m/large", stripe)[0].id) for stripe in range(5)}
    assert client.metrics.reads["worker"] == 8


def replicated(trio: Trio, count: int) -> None:
    mounts = [{"name": "m", "url": "s3://bucket", "replicas": count}]
    for worker in trio.workers.values():
        worker.always("GET", "/mounts", lambda answer: answer.respond_json(mounts))


def test_processes_spread_over_the_replicas_of_a_mount(trio: Trio, connect: Connect) -> None:
    replicated(trio, 2)
    first, second, third = trio.ranked()
    for turn in range(6):
        client = connect()
        client._cluster._turn = turn
        everything(client)
        everything(client)
    assert trio.reads() == {first.id: 6, second.id: 6, third.id: 0}
    assert all("keep" not in request.query for request in second.requests)


def test_a_replica_that_is_down_is_covered_by_the_other(trio: Trio, connect: Connect) -> None:
    replicated(trio, 2)
    _, second, third = trio.ranked()
    second.refuse()
    for turn in range(2):
        client = connect()
        client._cluster._turn = turn
        assert everything(client) == CONTENT
    assert trio.reads()[third.id] == 0


def test_mounts_that_nobody_tells_have_one_replica(trio: Trio, connect: Connect) -> None:
    first, _, _ = trio.ranked()
    for worker in trio.workers.values():
        worker.always("GET", "/mounts", script.fail(AccessDenied("not for you")))
    client = connect()
    assert everything(client) == CONTENT
    assert everything(client) == CONTENT
    assert trio.reads()[first.id] == 2
    asked = sum(worker.count("GET", "/mounts") for worker in trio.workers.values())
    assert asked == 1


# -- batches -------------------------------------------------------------------------------------------


@pytest.fixture
def many(trio: Trio) -> dict[str, bytes]:
    files = {f"/m/{n}": os.urandom(1000 + 13 * n) for n in range(60)}
    for worker in trio.workers.values():
        worker.files |= {path: script._File(data, "v") for path, data in files.items()}
    return files


def batch(client: CacheClient, files: dict[str, bytes]) -> list[tuple[FileInfo, int, int]]:
    infos = {path: FileInfo(path, len(data), "v") for path, data in files.items()}
    return [(infos[path], n % 97, 700) for n, path in enumerate([*files] * 3)]


def right(files: dict[str, bytes], asked: list[tuple[FileInfo, int, int]]) -> list[bytes]:
    return [files[file.path][start : start + length] for file, start, length in asked]


def test_a_batch_is_one_request_to_each_worker_in_the_callers_order(
    trio: Trio, connect: Connect, many: dict[str, bytes]
) -> None:
    client = connect()
    asked = batch(client, many)
    assert client.read_ranges(asked) == right(many, asked)
    assert {name: worker.count("POST", "/ranges") for name, worker in trio.workers.items()} == {
        "a": 1,
        "b": 1,
        "c": 1,
    }
    assert client.metrics.reads["worker"] == len(asked)
    assert sum(client.metrics.batch_latency.counts) == 1


def test_a_large_batch_is_asked_for_in_two_parts(
    trio: Trio, connect: Connect, many: dict[str, bytes]
) -> None:
    client = connect()
    asked = batch(client, many) * 10
    assert len(asked) >= 512
    assert client.read_ranges(asked) == right(many, asked)
    assert {worker.count("POST", "/ranges") for worker in trio.workers.values()} == {2}
    trio.workers["a"].always("POST", "/ranges", _half_of_the_frames)
    assert client.read_ranges(asked) == right(many, asked)
    assert client.metrics.reads["worker"] == 2 * len(asked)


def _half_of_the_frames(answer: Answer) -> None:
    honest = Recorder(answer)
    answer.worker._ranges(honest)  # type: ignore[arg-type]
    answer.send(honest.sent[: len(honest.sent) // 2])
    raise ConnectionAbortedError


class Recorder(Answer):
    """Takes down what an honest worker would send."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.worker, answer.request, answer.sock)
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data


def _flip_all(answer: Answer) -> None:
    _, ranges = script.decode_ranges(answer.request.body)
    answer.respond(
        200, b"".join(script.data_frame(n, bytes(item.length), total=1) for n, item in enumerate(ranges))
    )


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param(script.reset, "reset", id="reset"),
        pytest.param(_half_of_the_frames, "reset", id="half an answer"),
        pytest.param(script.stall, "timeout", id="silence"),
        pytest.param(script.fail(WorkerBusy("full")), "busy", id="busy"),
        pytest.param(_flip_all, "corrupt", id="corrupt"),
        pytest.param(script.fail(UnderStoreError("503")), "store_error", id="store error"),
    ],
)
def test_a_failing_worker_costs_no_range_of_a_batch(
    trio: Trio, connect: Connect, many: dict[str, bytes], behaviour: Behaviour, reason: str
) -> None:
    client = connect(stall_timeout_s=0.3)
    asked = batch(client, many)
    trio.workers["b"].always("POST", "/ranges", behaviour)
    assert client.read_ranges(asked) == right(many, asked)
    assert client.metrics.fallbacks[reason] >= 1
    assert client.metrics.reads["worker"] == len(asked)


def test_a_missing_file_in_a_batch_raises(trio: Trio, connect: Connect, many: dict[str, bytes]) -> None:
    client = connect()
    asked = [*batch(client, many), (FileInfo("/m/none", 50, "v"), 0, 10)]
    with pytest.raises(FileNotFoundError):
        client.read_ranges(asked)


def test_a_batch_refused_is_final(trio: Trio, connect: Connect, many: dict[str, bytes]) -> None:
    client = connect()
    for worker in trio.workers.values():
        worker.plan("POST", "/ranges", script.fail(AccessDenied("token")))
    with pytest.raises(AccessDenied):
        client.read_ranges(batch(client, many))


def test_empty_ranges_and_empty_batches(trio: Trio, connect: Connect) -> None:
    client = connect()
    file = client.info(PATH)
    assert client.read_ranges([]) == []
    got = client.read_ranges([(file, 0, 0), (file, len(CONTENT), 10), (file, len(CONTENT) - 3, 10)])
    assert got == [b"", b"", CONTENT[-3:]]


# -- listings ------------------------------------------------------------------------------------------


def _cut_listing(after: int) -> Behaviour:
    def behave(answer: Answer) -> None:
        honest = Recorder(answer)
        answer.worker._list(honest)  # type: ignore[arg-type]
        lines = honest.sent.split(b"\r\n")
        answer.send(b"\r\n".join(lines[: 3 + 2 * after]) + b"\r\n")
        raise ConnectionAbortedError

    return behave


def test_a_listing_goes_on_where_its_worker_left_off(
    trio: Trio, connect: Connect, many: dict[str, bytes]
) -> None:
    first, second, _ = trio.ranked("/m")
    first.plan("GET", "/list", _cut_listing(20))
    second.plan("GET", "/list", _cut_listing(40))
    client = connect()
    paths = [entry.path for entry in client.list("/m", recursive=True)]
    assert paths == sorted([*many, PATH])
    assert client.metrics.fallbacks == {"reset": 2}


def test_a_listing_whose_place_is_lost_fails_rather_than_lies(
    trio: Trio, connect: Connect, many: dict[str, bytes]
) -> None:
    first, second, _ = trio.ranked("/m")
    first.plan("GET", "/list", _cut_listing(20))
    del second.files[sorted([*many, PATH])[19]]
    client = connect()
    with pytest.raises(CacheError, match="is gone"):
        list(client.list("/m", recursive=True))


def test_a_listing_left_early_closes_its_connection(
    trio: Trio, connect: Connect, many: dict[str, bytes]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    client = connect()
    entries = client.list("/m")
    next(entries)
    entries.close()  # type: ignore[attr-defined]
    client.close()
    first, _, _ = trio.ranked("/m")
    first.drop_connections()
    assert len(os.listdir("/proc/self/fd")) == before


# -- whatever ------------------------------------------------------------------------------------------


def test_many_threads_read_right_bytes_while_workers_come_and_go(trio: Trio, connect: Connect) -> None:
    client = connect(suspect_s=0.01, connections_per_worker=3)
    file, wrong, stop = client.info(PATH), list[str](), threading.Event()

    def reader(seed: int) -> None:
        at = seed
        while not stop.is_set():
            at = (at * 7919 + 13) % (len(CONTENT) - 5000)
            try:
                data = client.read(file, at, 5000)
            except Exception as exc:
                wrong.append(repr(exc))
                return
            if data != CONTENT[at : at + 5000]:
                wrong.append(f"wrong bytes at {at}")

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    first, second, _ = trio.ranked()
    for _ in range(2):
        for worker in (first, second):
            worker.drop_connections()
            worker.plan("GET", "/read", script.flip(3), script.cut_after(100), script.reset)
        everything(client)
    stop.set()
    for thread in threads:
        thread.join(FAR_S)
    assert wrong == []
    counts = client.metrics
    assert sum(counts.reads.values()) == sum(counts.read_latency.counts)


def test_a_client_pickles_as_its_arguments(trio: Trio) -> None:
    import pickle

    config = ClientConfig(worker_hosts=(f"127.0.0.1:{trio.workers['a'].port}",))
    with CacheClient(config) as client, pickle.loads(pickle.dumps(client)) as again:
        assert again.config == config
        assert everything(again) == CONTENT


def test_reads_of_directories_and_bad_ranges_are_refused_at_once(trio: Trio, connect: Connect) -> None:
    client = connect()
    with pytest.raises(IsADirectoryError):
        client.read(FileInfo("/m", 0, "", is_dir=True), 0, 1)
    with pytest.raises(ValueError, match="before its start"):
        client.read(client.info(PATH), -1, 1)
    for path in ("m/f", "/m/../f", "/m//f"):
        with pytest.raises(ValueError):
            client.info(path)
    assert client.read(client.info(PATH), len(CONTENT) + 5, 10) == b""


def test_buffers_of_any_kind_are_filled(trio: Trio, connect: Connect) -> None:
    from array import array

    client, numbers = connect(), array("q", [0] * 100)
    assert client.read_into(client.info(PATH), 0, memoryview(numbers)) == 800
    assert numbers.tobytes() == CONTENT[:800]
    assert PageCorrupt("x").reason == "corrupt"


def test_the_first_entries_of_a_listing_do_not_wait_for_the_last(trio: Trio, connect: Connect) -> None:
    first_taken = threading.Event()

    def behave(answer: Answer) -> None:
        lines = [b'{"path": "/m/%d", "size": 1, "version": "v"}\n' % number for number in range(2)]
        answer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer.send(b"%x\r\n%b\r\n" % (len(lines[0]), lines[0]))
        assert first_taken.wait(script.WAIT_S)
        answer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(lines[1]), lines[1]))

    for worker in trio.workers.values():
        worker.always("GET", "/list", behave)
    entries = connect().list("/m")
    assert next(entries).path == "/m/0"
    first_taken.set()
    assert [entry.path for entry in entries] == ["/m/1"]
