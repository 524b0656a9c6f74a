"""Read-ahead: the arithmetic alone, then readers over a file in memory whose every fetch is recorded."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kara_cache.cached_file import CachedFile
from kara_cache.client_metrics import ClientMetrics
from kara_cache.errors import WorkerUnavailable
from kara_cache.page_buffers import PageBuffers, fresh_memory
from kara_cache.read_window import MAX_CHUNK_BYTES, UNIT_BYTES, Window, after_read, goes_on, outdated, wanted
from kara_cache.reading.read_ahead import ReadAhead, SequentialReader
from kara_cache.reading.read_threads import ReadThreads
from kara_cache.ufs.base import FileInfo

MIB = UNIT_BYTES
LIMIT = 16 * MIB
WAIT_S = 20.0


# -- arithmetic ----------------------------------------------------------------------------------------


def follow(*reads: tuple[int, int], limit: int = LIMIT) -> Window:
    window = Window()
    for start, stop in reads:
        window = after_read(window, start, stop, limit)
    return window


def test_one_read_says_nothing() -> None:
    assert follow((0, 100)).ahead == 0
    assert list(wanted(follow((0, 100)), 0, 100, 10 * MIB, ())) == []


def test_the_second_read_in_sequence_opens_a_window_of_one_unit() -> None:
    assert follow((0, 100), (100, 200)).ahead == MIB


def test_the_window_doubles_with_each_unit_that_is_crossed_up_to_the_limit() -> None:
    reads = [(at * MIB, (at + 1) * MIB) for at in range(8)]
    sizes = [follow(*reads[: n + 1]).ahead // MIB for n in range(8)]
    assert sizes == [0, 1, 2, 4, 8, 16, 16, 16]


def test_small_reads_within_a_unit_do_not_double_it() -> None:
    assert follow(*((at, at + 4096) for at in range(0, MIB // 2, 4096))).ahead == MIB


def test_jumping_about_never_opens_a_window() -> None:
    window = Window()
    for start in (5, 900, 17, 4444, 60, 8, 123_456):
        window = after_read(window, start * 1000, start * 1000 + 10, LIMIT)
        assert window.ahead == 0


def test_one_read_elsewhere_leaves_the_sequence_alone_a_second_ends_it() -> None:
    strayed = follow((0, 100), (100, 200), (9 * MIB, 9 * MIB + 10))
    assert (strayed.position, strayed.ahead) == (200, MIB)
    assert after_read(strayed, 200, 300, LIMIT).ahead == MIB
    assert after_read(strayed, 5 * MIB, 5 * MIB + 10, LIMIT).ahead == 0


def test_going_on_from_elsewhere_is_a_new_sequence() -> None:
    window = follow((0, 100), (100, 200), (9 * MIB, 9 * MIB + 10), (9 * MIB + 10, 9 * MIB + 20))
    assert (window.position, window.ahead) == (9 * MIB + 20, MIB)
    assert outdated(window, 9 * MIB + 10, 0, MIB)


def test_a_limit_below_a_unit_turns_it_off() -> None:
    assert follow((0, 10), (10, 20), (20, 30), limit=MIB - 1).ahead == 0


def test_a_short_read_gets_a_chunk_for_its_own_bytes_that_ends_with_the_unit() -> None:
    window = follow((0, 100), (100, 200))
    assert list(wanted(window, 100, 200, 100 * MIB, ())) == [(100, MIB), (MIB, 2 * MIB)]


def test_a_long_read_takes_its_own_bytes_itself() -> None:
    window = follow((0, 2 * MIB), (2 * MIB, 4 * MIB))
    assert list(wanted(window, 2 * MIB, 4 * MIB, 100 * MIB, ())) == [(4 * MIB, 5 * MIB)]


def test_what_is_held_is_not_wanted_again() -> None:
    window = follow((0, 100), (100, 200))
    assert list(wanted(window, 100, 200, 100 * MIB, [(50, MIB)])) == [(MIB, 2 * MIB)]


def test_chunks_grow_with_the_window() -> None:
    assert Window(0, 2 * MIB).chunk_bytes == MIB
    assert Window(0, 8 * MIB).chunk_bytes == 2 * MIB
    assert Window(0, 32 * MIB).chunk_bytes == 8 * MIB
    assert Window(0, 512 * MIB).chunk_bytes == MAX_CHUNK_BYTES


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40 * MIB),
            st.one_of(st.integers(1, 3 * MIB), st.integers(1, 9000), st.just(MIB // 4)),
            st.booleans(),
        ),
        max_size=25,
    ),
    st.integers(0, 20 * MIB),
)
def test_nothing_is_fetched_twice_and_the_window_is_bounded(
    steps: list[tuple[int, int, bool]], limit: int
) -> None:
    """`held` kept as a reader keeps it: what is wanted is disjoint from it, within file and bound."""
    size, window, held, position = 41 * MIB, Window(), list[tuple[int, int]](), 0
    for start, length, sequential in steps:
        start = position if sequential else start
        stop = min(size, start + length)
        if start >= stop:
            continue
        position = stop
        going_on = goes_on(window, start, stop)
        window = after_read(window, start, stop, limit)
        held = [chunk for chunk in held if not outdated(window, start, *chunk)]
        for at, to in wanted(window, start, stop, size, held):
            assert not going_on, "a reader may skip the question"
            assert start <= at < to <= size
            assert to <= stop + window.ahead + window.chunk_bytes
            assert to - at <= window.chunk_bytes
            assert all(to <= held_at or held_to <= at for held_at, held_to in held)
            held.append((at, to))
        held.sort()
        assert window.ahead <= limit


# -- readers -------------------------------------------------------------------------------------------


class Source:
    """A file whose fetches can be held up and made to fail."""

    def __init__(self, size: int) -> None:
        self.data = os.urandom(MIB) * (size // MIB + 1)
        self.data = self.data[:size]
        self.info = FileInfo("/m/f", size, "v1")
        self.fetched: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Semaphore(0)  # released by each fetch that has begun
        self.fail_at: set[int] = set()
        self._lock = threading.Lock()

    def read_into(self, file: CachedFile, start: int, view: memoryview) -> int:
        with self._lock:
            self.fetched.append((start, start + len(view)))
            self.threads.add(threading.get_ident())
            fails = start in self.fail_at
        self.waiting.release()
        assert self.gate.wait(WAIT_S)
        if fails:
            raise WorkerUnavailable(f"told to fail at {start}", reason="reset")
        view[:] = self.data[start : start + len(view)]
        return len(view)

    def overlaps(self) -> bool:
        ranges = sorted(self.fetched)
        return any(before[1] > after[0] for before, after in pairwise(ranges))


class Bench:
    def __init__(self, size: int, window_bytes: int = LIMIT) -> None:
        self.source = Source(size)
        self.metrics = ClientMetrics()
        self.at_hand: set[int] = set()  # units that need no fetch in advance
        self.shared = ReadAhead(
            self.source.read_into,
            self.metrics,
            at_hand=lambda _, start, stop: self.at_hand.issuperset(range(start // MIB, -(-stop // MIB))),
            window_bytes=window_bytes,
            timeout_s=WAIT_S,
        )

    def open(self) -> SequentialReader:
        return self.shared.open(CachedFile(self.source.info))

    def counts(self) -> dict[str, int]:
        return self.metrics.snapshot().read_ahead


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(size: int, window_bytes: int = LIMIT) -> Bench:
        made.append(Bench(size, window_bytes))
        return made[-1]

    yield make
    for one in made:
        one.source.gate.set()
        one.shared.close()


@pytest.mark.parametrize("step", [4096, 100_000, 3 * MIB], ids=["4 KiB", "100 kB", "3 MiB"])
def test_a_file_read_in_sequence_is_right_and_fetched_once(bench: Callable[..., Bench], step: int) -> None:
    b = bench(20 * MIB + 123)
    reader, out = b.open(), bytearray()
    buffer = bytearray(step)
    while count := reader.readinto_at(len(out), buffer):
        out += buffer[:count]
    assert bytes(out) == b.source.data
    assert not b.source.overlaps()
    assert sum(stop - start for start, stop in b.source.fetched) == len(out)
    reader.close()
    counts = b.counts()
    assert counts["waste"] == 0
    assert counts["hit"] == counts["fetched"] > 0


def test_random_reads_fetch_exactly_what_is_asked(bench: Callable[..., Bench]) -> None:
    b = bench(30 * MIB)
    reader = b.open()
    asked = [(17 * MIB, 10), (3 * MIB, 5000), (29 * MIB, 1), (9 * MIB, 77), (1, 2), (25 * MIB, 9)]
    for start, length in asked:
        assert bytes(reader.read_at(start, length)) == b.source.data[start : start + length]
    assert b.source.fetched == [(start, start + length) for start, length in asked]
    reader.close()


def test_a_consumer_waits_for_the_chunk_that_is_on_its_way(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    reader = b.open()
    reader.read_at(0, MIB)
    b.source.waiting.acquire()
    b.source.gate.clear()
    got: list[bytes] = []

    def consume() -> None:
        got.append(bytes(reader.read_at(MIB, MIB)))
        got.append(bytes(reader.read_at(2 * MIB, MIB)))

    consumer = threading.Thread(target=consume)
    consumer.start()
    # the reader's own bytes and the chunk after them are both under way and held up
    assert b.source.waiting.acquire(timeout=WAIT_S)
    assert b.source.waiting.acquire(timeout=WAIT_S)
    b.source.gate.set()
    consumer.join(WAIT_S)
    assert b"".join(got) == b.source.data[MIB : 3 * MIB]
    assert not b.source.overlaps()
    assert len(b.source.threads) >= 2, "nothing was fetched by another thread"
    reader.close()


def test_a_queued_chunk_is_fetched_by_the_reader_that_needs_it(bench: Callable[..., Bench]) -> None:
    """With every thread of the pool held up elsewhere, a reader does not wait for them."""
    b, other = bench(8 * MIB), threading.Event()
    held_up = threading.Semaphore(0)

    def hold_up() -> None:
        held_up.release()
        other.wait(WAIT_S)

    for _ in range(4):
        b.shared.threads.submit(hold_up)
    for _ in range(4):
        assert held_up.acquire(timeout=WAIT_S)
    reader = b.open()
    out = b"".join(bytes(reader.read_at(at, MIB)) for at in range(0, 8 * MIB, MIB))
    assert out == b.source.data
    assert b.source.threads == {threading.get_ident()}
    other.set()
    reader.close()


def test_a_short_seek_back_is_served_from_what_is_held(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    reader = b.open()
    for at in range(0, 2 * MIB, 64 << 10):
        reader.read_at(at, 64 << 10)
    before = list(b.source.fetched)
    assert bytes(reader.read_at(MIB + 5, 1000)) == b.source.data[MIB + 5 : MIB + 1005]
    assert b.source.fetched == before
    reader.close()


def test_an_error_surfaces_where_its_bytes_are_needed_and_the_next_read_tries_again(
    bench: Callable[..., Bench],
) -> None:
    b = bench(8 * MIB)
    b.source.fail_at = {3 * MIB}
    reader = b.open()
    for at in range(3):
        assert bytes(reader.read_at(at * MIB, MIB)) == b.source.data[at * MIB : (at + 1) * MIB]
    with pytest.raises(WorkerUnavailable, match="told to fail"):
        reader.read_at(3 * MIB, MIB)
    b.source.fail_at = set()
    assert bytes(reader.read_at(3 * MIB, MIB)) == b.source.data[3 * MIB : 4 * MIB]
    reader.close()


def test_a_jump_away_drops_what_was_fetched_for_nothing_and_counts_it(bench: Callable[..., Bench]) -> None:
    b = bench(60 * MIB)
    reader = b.open()
    for at in range(6):
        reader.read_at(at * MIB, MIB)
    for at in (40, 50, 30):
        reader.read_at(at * MIB, 10)
    reader.close()
    counts = b.counts()
    assert counts["hit"] + counts["waste"] <= counts["fetched"]
    assert "0 chunks" in repr(reader)


def test_memory_is_bounded_and_comes_back(bench: Callable[..., Bench]) -> None:
    b = bench(64 * MIB, window_bytes=8 * MIB)
    reader, buffer = b.open(), bytearray(256 << 10)
    for at in range(0, 64 * MIB, len(buffer)):
        reader.readinto_at(at, buffer)
        held = sum(chunk.stop - chunk.start for chunk in reader._chunks)
        assert held <= 8 * MIB + 2 * MAX_CHUNK_BYTES
    reader.close()
    assert "0 of" not in repr(b.shared.buffers)  # kept for the next reader
    assert b.shared.buffers._held_bytes <= 8 * 8 * MIB


def test_without_memory_left_reads_still_work(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    b.shared.buffers = PageBuffers(0)
    reader = b.open()
    out = b"".join(bytes(reader.read_at(at, 300_000)) for at in range(0, 8 * MIB, 300_000))
    assert out == b.source.data
    reader.close()


def test_a_view_that_was_lent_stays_as_it_was(bench: Callable[..., Bench]) -> None:
    b = bench(40 * MIB)
    reader = b.open()
    views = [(at, reader.read_at(at, 512 << 10)) for at in range(0, 40 * MIB, 512 << 10)]
    reader.close()
    for at, view in views:
        assert view.readonly
        assert bytes(view) == b.source.data[at : at + (512 << 10)]


def test_a_closed_reader_refuses_and_cancels(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    reader = b.open()
    reader.read_at(0, MIB)
    b.source.gate.clear()
    thread = threading.Thread(target=lambda: reader.read_at(MIB, MIB))
    thread.start()
    for _ in range(3):
        assert b.source.waiting.acquire(timeout=WAIT_S)
    reader.close()
    b.source.gate.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        reader.read_at(0, 1)
    reader.close()


def test_what_is_at_hand_is_not_fetched_in_advance(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    b.at_hand = set(range(8))
    reader = b.open()
    for at in range(0, 8 * MIB, MIB // 4):
        assert bytes(reader.read_at(at, MIB // 4)) == b.source.data[at : at + MIB // 4]
    assert b.source.fetched == [(at, at + MIB // 4) for at in range(0, 8 * MIB, MIB // 4)]
    assert b.counts()["fetched"] == 0
    reader.close()


class Poisoned(PageBuffers):
    """Overwrites what comes back, as the next user would."""

    def give_back(self, buffer: memoryview, *, reusable: bool) -> None:
        if reusable:
            buffer[:] = bytes(len(buffer))
        super().give_back(buffer, reusable=reusable)


def test_memory_that_a_reader_waits_for_is_not_used_again_though_another_drops_it(
    bench: Callable[..., Bench],
) -> None:
    b = bench(60 * MIB)
    b.shared.buffers = Poisoned(100 * MIB)
    reader = b.open()
    got: dict[int, bytes] = {}

    def read(at: int) -> None:
        got[at] = bytes(reader.read_at(at, MIB // 2))

    def started(at: int) -> threading.Thread:
        thread = threading.Thread(target=read, args=(at,))
        thread.start()
        return thread

    reader.read_at(0, MIB // 2)
    b.source.waiting.acquire()
    b.source.gate.clear()
    # two chunks are on their way, the second with a reader waiting for it that has not begun it
    threads = [started(MIB // 2)]
    for _ in range(2):
        assert b.source.waiting.acquire(timeout=WAIT_S)
    threads.append(started(MIB))
    while not any(chunk.users for chunk in reader._chunks if chunk.start == MIB):
        assert threads[-1].is_alive()
    for at in (30 * MIB, 50 * MIB):
        threads.append(started(at))
        assert b.source.waiting.acquire(timeout=WAIT_S)
    assert reader._chunks == []
    b.source.gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert {at: data == b.source.data[at : at + MIB // 2] for at, data in got.items()} == dict.fromkeys(
        (MIB // 2, MIB, 30 * MIB, 50 * MIB), True
    )
    reader.close()


def test_a_reader_nobody_closed_gives_its_memory_back(bench: Callable[..., Bench]) -> None:
    b = bench(8 * MIB)
    reader = b.open()
    for at in range(0, 8 * MIB, MIB):
        reader.read_at(at, 4096)
        reader.read_at(at + 4096, 4096)
    gone = threading.Event()
    weakref.finalize(reader, gone.set)
    del reader
    assert gone.wait(WAIT_S), "fetches that were on their way hold it until they end"
    fresh = b.open()
    fresh.read_at(0, 10)
    fresh.close()
    assert not b.shared.orphans


def test_many_threads_may_share_one_reader(bench: Callable[..., Bench]) -> None:
    b = bench(24 * MIB, window_bytes=4 * MIB)
    reader, wrong = b.open(), list[int]()

    def read(first: int) -> None:
        buffer = bytearray(200_000)
        for at in range(first, 24 * MIB, 300_000):
            count = reader.readinto_at(at, buffer)
            if bytes(buffer[:count]) != b.source.data[at : at + count]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(first,)) for first in (0, 100_000, 200_000, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == []
    reader.close()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6 * MIB), st.integers(1, 2 * MIB), st.booleans()), max_size=12))
def test_any_pattern_of_reads_gives_the_bytes_of_the_file(steps: list[tuple[int, int, bool]]) -> None:
    b = Bench(6 * MIB, window_bytes=3 * MIB)
    reader, position = b.open(), 0
    for start, length, sequential in steps:
        start = position if sequential else start
        data = bytes(reader.read_at(start, length))
        assert data == b.source.data[start : start + length]
        position = start + len(data)
    reader.close()
    b.shared.close()


# -- threads and buffers -------------------------------------------------------------------------------


def test_threads_start_with_work_are_bounded_and_refuse_after_close() -> None:
    threads, gate, began = ReadThreads(), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        began.release()
        gate.wait(WAIT_S)

    assert "0 running" in repr(threads)
    for _ in range(10):
        assert threads.submit(work)
    for _ in range(4):
        assert began.acquire(timeout=WAIT_S)
    assert "4 running, 0 idle, 6 queued" in repr(threads)
    gate.set()
    threads.close()
    assert not threads.submit(work)


def test_a_task_that_raises_does_not_end_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    threads, done, began = ReadThreads(), threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        began.release()
        done.wait(WAIT_S)

    for _ in range(3):
        threads.submit(hold)
    for _ in range(3):
        assert began.acquire(timeout=WAIT_S)
    # the fourth thread, the last there may be, gets both
    threads.submit(lambda: 1 // 0)
    threads.submit(done.set)
    assert done.wait(WAIT_S)
    assert "read-ahead failed" in caplog.text
    threads.close()


def test_buffers_are_page_aligned_and_within_their_budget() -> None:
    import ctypes

    buffers = PageBuffers(2 * MIB)
    first, second = buffers.take(MIB), buffers.take(MIB)
    assert first is not None
    assert second is not None
    assert ctypes.addressof(ctypes.c_char.from_buffer(first)) % 4096 == 0
    assert buffers.take(1) is None
    buffers.give_back(first, reusable=True)
    assert buffers.take(MIB) is first
    buffers.give_back(second, reusable=False)
    third = buffers.take(MIB)
    assert third is not None
    assert third is not second
    buffers.give_back(third, reusable=True)
    assert buffers.take(512 << 10) is not None  # what was free in another size made room


@pytest.mark.parametrize("size", [0, 100, 40 * MIB])
def test_fresh_memory_is_writable_and_as_long_as_asked(size: int) -> None:
    memory = fresh_memory(size)
    assert (len(memory), memory.readonly) == (size, False)
