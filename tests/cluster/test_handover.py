"""Pages handed over: what a worker that goes offers to whom, and what one that stays takes and gives up."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import scripted_worker as script
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_worker import Answer, Behaviour, FixedMembership, ScriptedWorker

from kara_cache.cluster import Cluster
from kara_cache.errors import FormatError, WorkerBusy
from kara_cache.membership.base import MemberState, WorkerInfo
from kara_cache.mount import Mount, MountTable
from kara_cache.page import PageHeader, PageId
from kara_cache.suspects import Suspects
from kara_cache.transport.worker_link import Transport
from kara_cache.ufs.memory import MemoryStore
from kara_worker.config import HandoverConfig
from kara_worker.eviction import make_policy
from kara_worker.handover.giver import Given, Handover, next_owner
from kara_worker.handover.guests import Guests
from kara_worker.handover.offer import (
    MAX_PAGES,
    Offer,
    Taken,
    decode_offer,
    decode_taken,
    encode_offer,
    encode_taken,
)
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import FileRef, PageCache
from kara_worker.pages.file_page_store import FilePageStore

PAGE = 64 << 10
ME, OTHER, THIRD = "me", "other", "third"
CAPACITY_PAGES = 64
FAR_S = 60.0


@dataclass
class Scene:
    """This worker's own page cache, and others that do as they are told."""

    cache: PageCache
    cluster: Cluster
    membership: FixedMembership
    others: dict[str, ScriptedWorker]
    now: float = 1000.0
    kept: dict[PageId, bytes] = field(default_factory=dict)

    def guests(self) -> Guests:
        return Guests(self.cache, self.cluster, own=ME, clock=lambda: self.now)

    def states(self, **states: MemberState | None) -> None:
        """Of the others; None: no member any more."""
        wanted = {name: states.get(name, MemberState.ACTIVE) for name in self.others}
        members = [
            self.others[name].member(state=state) for name, state in wanted.items() if state is not None
        ]
        self.membership.replace(_me(), *members)

    def ref(self, name: str, pages: int) -> FileRef:
        return self.cache.ref(f"/m/{name}", "v1", pages * PAGE - 5)

    def owned_by(self, *owners: str, pages: int = 1, number: int = 0) -> FileRef:
        """The `number`th file that these own first, in this order."""
        names = (f"file-{n}" for n in range(100_000))
        refs = (self.ref(name, pages) for name in names)
        found = (ref for ref in refs if self.owners(ref)[: len(owners)] == owners)
        return [next(found) for _ in range(number + 1)][-1]

    def owners(self, ref: FileRef) -> tuple[str, ...]:
        return self.cluster.owners(self.cluster.table(), ref.path)

    def keep(self, *refs: FileRef) -> list[PageId]:
        """Has all pages of the files in our own store."""
        made = [page_of(ref, index) for ref in refs for index in range(-(-ref.size // PAGE))]
        for header, data in made:
            assert self.cache.pages.put(header, memoryview(data), group="m")
        return [header.page for header, _ in made]

    def offer(self, refs: Sequence[FileRef], worker: str = OTHER) -> Offer:
        pages = tuple(PageId(ref.file_id, i) for ref in refs for i in range(-(-ref.size // PAGE)))
        return Offer(worker, PAGE, FAR_S, pages)

    def here(self, refs: Sequence[FileRef]) -> list[bool]:
        return [self.cache.pages.contains(page) for page in self.offer(refs).pages]


def _me() -> WorkerInfo:
    return WorkerInfo(ME, "127.0.0.1", 1)


def page_of(ref: FileRef, index: int) -> tuple[PageHeader, bytes]:
    data = os.urandom(min(PAGE, ref.size - index * PAGE))
    page = PageId(ref.file_id, index)
    return PageHeader.of(page, data, page_bytes=PAGE, created_ns=1, path=ref.path), data


def gives(*refs: FileRef) -> Behaviour:
    """Has all pages of these files."""
    pages = {}
    for ref in refs:
        for index in range(-(-ref.size // PAGE)):
            header, data = page_of(ref, index)
            pages[ref.file_id.hex(), str(index)] = header.encode() + data

    def behave(answer: Answer) -> None:
        query = answer.request.query
        found = pages.get((query["file"], query["index"]))
        if found is None:
            answer.respond_error(FileNotFoundError(2, "not here", "page"))
        else:
            answer.respond(200, found)

    return behave


def scene(directory: Path, work: Callable[[Scene], Awaitable[None]], *, replicas: int = 1) -> None:
    async def run() -> None:
        metrics = WorkerMetrics()
        mounts = MountTable([Mount("m", "memory://x", replicas=replicas)])
        stores = MountedStores(mounts, metrics, opener=lambda _: MemoryStore())
        pages = FilePageStore(
            [directory],
            CAPACITY_PAGES * (PAGE + 4096),
            PAGE,
            make_policy("lru", guard=False),
            high_watermark=1.0,  # nothing leaves in the background
            low_watermark=1.0,
        )
        cache = PageCache(
            pages, stores, metrics, store_threads=2, fill_memory_bytes=1 << 24, write_queue_bytes=1 << 24
        )
        others = {name: ScriptedWorker(identity=name).start() for name in (OTHER, THIRD)}
        membership = FixedMembership(_me(), *(other.member() for other in others.values()))
        transport = Transport(connect_timeout_s=5.0, stall_timeout_s=FAR_S, connections=8)
        cluster = Cluster(membership, transport, Suspects(0.5))
        try:
            await work(Scene(cache, cluster, membership, others))
        finally:
            cluster.close()
            for other in others.values():
                other.close()
            await cache.close(5.0)
            pages.close()

    asyncio.run(run())


# -- those that stay ------------------------------------------------------------------------------------


def test_pages_come_verified_or_not_at_all(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, other = it.guests(), it.others[OTHER]
        good, gone, wrong = (it.owned_by(OTHER, number=n, pages=2) for n in range(3))
        header, data = page_of(wrong, 0)
        damaged = header.encode() + bytes([data[0] ^ 1]) + data[1:]
        stranger, its = page_of(good, 0)
        other.always("GET", "/page", gives(good))
        assert await guests.take(it.offer([good, gone])) == Taken(2, good.size, 0, True)
        assert it.here([good, gone]) == [True, True, False, False]
        for answer in (damaged, stranger.encode() + its, header.encode() + data[:-1], b"", os.urandom(9000)):
            other.always("GET", "/page", lambda a, body=answer: a.respond(200, body))
            assert (await guests.take(it.offer([wrong]))).taken == 0
        other.always("GET", "/page", script.reset)
        assert (await guests.take(it.offer([wrong]))).taken == 0
        assert it.here([wrong]) == [False, False]
        assert await guests.take(it.offer([good])) == Taken(0, 0, 2, True)
        assert (guests.pages_taken, guests.bytes_taken, guests.bytes) == (2, good.size, good.size)
        await guests.close()

    scene(tmp_path, work)


def test_only_members_are_fetched_from(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, ref = it.guests(), it.owned_by(OTHER)
        for offer in (
            it.offer([ref], worker="nobody"),
            it.offer([ref], worker=ME),
            Offer(OTHER, 2 * PAGE, FAR_S, it.offer([ref]).pages),
        ):
            with pytest.raises(WorkerBusy):
                await guests.take(offer)
        await guests.close()
        with pytest.raises(WorkerBusy, match="goes itself"):
            await guests.take(it.offer([ref]))
        assert it.others[OTHER].requests == []

    scene(tmp_path, work)


def test_guests_leave_when_their_worker_is_back(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, ref = it.guests(), it.owned_by(OTHER, ME, pages=3)
        it.others[OTHER].always("GET", "/page", gives(ref))
        assert (await guests.take(it.offer([ref]))).taken == 3
        it.now += 60
        assert await guests.sweep() == 0, "it may not have gone yet"
        it.states(other=MemberState.PASSIVE)
        it.now += 3600
        assert await guests.sweep() == 0
        assert all(it.here([ref]))
        it.states()
        assert await guests.sweep() == 3
        assert not any(it.here([ref]))
        assert it.cache.pages.stats().evictions == {"returned": 3}
        assert guests.bytes == 0
        await guests.close()

    scene(tmp_path, work)


def test_guests_whose_worker_gave_up_its_place_stay(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, ref = it.guests(), it.owned_by(OTHER, ME)
        it.others[OTHER].always("GET", "/page", gives(ref))
        await guests.take(it.offer([ref]))
        it.states(other=None)
        assert await guests.sweep() == 0
        it.states()
        it.now += 3600
        assert await guests.sweep() == 0
        assert it.here([ref]) == [True]
        await guests.close()

    scene(tmp_path, work)


def test_who_goes_drops_guests_of_those_that_are_back(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, ref, new = it.guests(), it.owned_by(OTHER, ME), it.owned_by(THIRD, ME)
        it.others[OTHER].always("GET", "/page", gives(ref))
        it.others[THIRD].always("GET", "/page", gives(new))
        await guests.take(it.offer([ref]))
        it.now += 15
        await guests.take(it.offer([new], THIRD))
        await guests.close()
        assert (it.here([ref]), it.here([new])) == ([False], [True])

    scene(tmp_path, work)


def test_a_replica_is_no_guest(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests, ref = it.guests(), it.owned_by(OTHER, ME)
        it.others[OTHER].always("GET", "/page", gives(ref))
        await guests.take(it.offer([ref]))
        it.now += 3600
        assert await guests.sweep() == 0
        assert it.here([ref]) == [True]
        await guests.close()

    scene(tmp_path, work, replicas=2)


def test_guests_take_free_room_or_an_eighth(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        guests = it.guests()
        it.keep(*(it.ref(f"own-{n}", 1) for n in range(CAPACITY_PAGES)))
        refs = [it.owned_by(OTHER, number=n) for n in range(12)]
        it.others[OTHER].always("GET", "/page", gives(*refs))
        first = await guests.take(it.offer(refs))
        assert (first.taken, first.more) == (8, False)
        assert (await guests.take(it.offer(refs[8:]))).more is False
        assert it.here(refs) == [True] * 8 + [False] * 4
        await guests.close()

    scene(tmp_path, work)


# -- who goes -------------------------------------------------------------------------------------------


def takes_all(answer: Answer) -> None:
    pages = decode_offer(answer.request.body).pages
    answer.respond(200, encode_taken(Taken(len(pages), len(pages) * PAGE, 0, True)))


def offered(worker: ScriptedWorker) -> list[PageId]:
    return [page for request in worker.requests if request.name == "/handover"
            for page in decode_offer(request.body).pages]  # fmt: skip


async def given_by(it: Scene, files: Sequence[FileRef], **bounds: Any) -> Given:
    config = HandoverConfig(**bounds)
    return await Handover(it.cache, it.cluster, lambda: files, config, own=ME).give()


def test_each_page_goes_to_whom_readers_will_ask(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        to_other, to_third = it.owned_by(ME, OTHER, pages=3), it.owned_by(ME, THIRD, pages=2)
        not_ours, not_here = it.owned_by(OTHER, ME), it.owned_by(ME, OTHER, number=1)
        it.keep(to_other, to_third, not_ours)
        for other in it.others.values():
            other.always("POST", "/handover", takes_all)
        given = await given_by(it, [to_other, not_ours, to_third, not_here])
        assert (given.pages, given.bytes, given.present) == (5, 5 * PAGE, 0)
        assert offered(it.others[OTHER]) == list(it.offer([to_other]).pages)
        assert offered(it.others[THIRD]) == list(it.offer([to_third]).pages)

    scene(tmp_path, work)


def test_what_one_refuses_goes_to_the_next(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        ref = it.owned_by(ME, OTHER, THIRD, pages=2)
        it.keep(ref)
        it.others[OTHER].always("POST", "/handover", script.fail(WorkerBusy("it goes itself")))
        it.others[THIRD].always("POST", "/handover", takes_all)
        assert (await given_by(it, [ref])).pages == 2
        assert offered(it.others[THIRD]) == list(it.offer([ref]).pages)
        assert len(offered(it.others[OTHER])) == 2, "asked once"

    scene(tmp_path, work)


@pytest.mark.parametrize(
    "behaviour",
    [script.reset, script.fail(ValueError("no such endpoint")), script.raw(b"what?\r\n\r\n"),
     lambda answer: answer.respond_json({"taken": -1})],
    ids=["gone", "an older release", "no answer", "no such answer"],
)  # fmt: skip
def test_nobody_who_takes_them_is_no_error(tmp_path: Path, behaviour: Behaviour) -> None:
    async def work(it: Scene) -> None:
        ref = it.owned_by(ME, pages=2)
        it.keep(ref)
        for other in it.others.values():
            other.always("POST", "/handover", behaviour)
        assert await given_by(it, [ref]) == Given()

    scene(tmp_path, work)


def test_the_newest_files_first_within_the_bytes(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        refs = [it.owned_by(ME, OTHER, number=n, pages=2) for n in range(4)]
        it.keep(*refs)
        it.others[OTHER].always("POST", "/handover", takes_all)
        assert (await given_by(it, refs, handover_bytes=5 * PAGE)).pages <= 5
        assert offered(it.others[OTHER]) == list(it.offer(refs[:2]).pages) + list(
            it.offer(refs[2:3]).pages[:1]
        )

    scene(tmp_path, work)


@pytest.mark.parametrize("bounds", [{"handover_bytes": 0}, {"handover_timeout_s": 0.0}])
def test_a_bound_of_nothing_offers_nothing(tmp_path: Path, bounds: dict[str, Any]) -> None:
    async def work(it: Scene) -> None:
        it.keep(ref := it.owned_by(ME))
        assert await given_by(it, [ref], **bounds) == Given()
        assert offered(it.others[OTHER]) == offered(it.others[THIRD]) == []

    scene(tmp_path, work)


def test_those_that_go_too_are_not_asked(tmp_path: Path) -> None:
    async def work(it: Scene) -> None:
        it.keep(ref := it.owned_by(ME))
        it.states(other=MemberState.DRAINING, third=MemberState.PASSIVE)
        assert await given_by(it, [ref]) == Given()
        assert offered(it.others[OTHER]) == offered(it.others[THIRD]) == []

    scene(tmp_path, work)


@pytest.mark.parametrize(
    ("owners", "live", "replicas", "receiver"),
    [
        ("mab", "mab", 1, "a"),
        ("mab", "mb", 1, "b"),
        ("amb", "mab", 1, None),
        ("amb", "mb", 1, "b"),  # a is away: we are asked in its place
        ("abm", "mab", 2, None),
        ("amb", "mab", 2, "a"),
        ("ab", "mab", 1, None),
        ("mab", "m", 1, None),
        ("mab", "ab", 1, "a"),  # we have told already that we go
    ],
)
def test_the_next_owner(owners: str, live: str, replicas: int, receiver: str | None) -> None:
    assert next_owner(tuple(owners), "m", frozenset(live), replicas) == receiver


# -- what is said ---------------------------------------------------------------------------------------

PAGES = st.lists(st.builds(PageId, st.binary(min_size=16, max_size=16), st.integers(0, 1 << 40)), max_size=8)


@settings(max_examples=30)
@given(PAGES, st.text(max_size=40), st.floats(0.001, 3600))
def test_offers_are_read_as_written(pages: list[PageId], worker: str, seconds: float) -> None:
    offer = Offer(worker, PAGE, seconds, tuple(pages))
    assert decode_offer(encode_offer(offer)) == offer


@given(st.integers(0), st.integers(0), st.integers(0), st.booleans())
def test_answers_are_read_as_written(taken: int, count: int, present: int, more: bool) -> None:
    import json

    answer = Taken(taken, count, present, more)
    assert decode_taken(json.loads(encode_taken(answer))) == answer


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{}", b"null", b"\xff",
        b'{"worker":1,"page_bytes":65536,"seconds":1,"files":[]}',
        b'{"worker":"a","page_bytes":"b","seconds":1,"files":[]}',
        b'{"worker":"a","page_bytes":65536,"seconds":-1,"files":[]}',
        b'{"worker":"a","page_bytes":65536,"seconds":NaN,"files":[]}',
        b'{"worker":"a","page_bytes":65536,"seconds":1e9,"files":[]}',
        b'{"worker":"a","page_bytes":65536,"seconds":1,"files":[["00",[1]]]}',
        b'{"worker":"a","page_bytes":65536,"seconds":1,"files":[["%s",[-1]]]}' % (b"00" * 16),
        b'{"worker":"a","page_bytes":65536,"seconds":1,"files":[["%s",[true]]]}' % (b"00" * 16),
        b'{"worker":"a","page_bytes":65536,"seconds":1,"files":[["%s",%s]]}'
        % (b"00" * 16, str(list(range(MAX_PAGES + 1))).encode()),
    ],
)  # fmt: skip
def test_other_bodies_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_offer(raw)
