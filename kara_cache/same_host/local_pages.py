"""Pages of workers on this host, read through descriptors that their workers handed over.

An RPC costs 50 us whatever it carries, a read through a descriptor at hand 1 us (measured), so the
descriptor is asked for once and kept. It outlives eviction: an unlinked file stays readable until its
last descriptor is closed, or, if it is a segment, is cut to nothing long after: a read tells, a mapping
would not survive it. Nothing is trusted because it is near: identity and sums are checked as for bytes
that came over a network.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic

from kara_cache.cached_file import CachedFile
from kara_cache.checksum import checksum
from kara_cache.errors import CacheError, KaraError, PageCorrupt
from kara_cache.page import DEFAULT_PAGE_BYTES, HEADER_BYTES, block_bytes_for
from kara_cache.read_stages import Marks
from kara_cache.same_host.held_page import HeldPage, UnopenedPage, read_header
from kara_cache.stripe import STRIPE_BYTES
from kara_cache.transport.worker_client import MAX_DESCRIPTORS, PassedPage, WorkerClient

_LEAST_PAGES, _MOST_PAGES = (
    256,
    4096,
)  # descriptors of one process; its usual limit is 1024, of a server's more
RENEW_S = 30.0  # a page in use is asked for again so often, which tells the worker that it is in use
_REFUSED_S = 30.0  # a worker that passes no descriptors is not asked for so long
_SWEEP_S = 1.0
_SCRATCH_BYTES = 1 << 20
_PASSED_BYTES = 32 << 10  # a longer read is faster through the descriptor
# To pass a page costs each side 14 us of processor time, for nothing where pages are read once. So when so
# many in a row came for nothing, only every eighth is asked for, until one of them is read again.
_WASTED = 64
_TRIED = 8
BLOCK_BYTES = block_bytes_for(DEFAULT_PAGE_BYTES)
SHORT_BLOCKS = 8
_TOUCH_S = 0.5
_COPY_BYTES = 256 << 10  # covers of at most so many bytes are read aside and copied; a block is no larger

Area = tuple[tuple[memoryview], memoryview, list[memoryview]]
Key = tuple[int, bytes, int]  # page size, file id, index


class _Scratch(threading.local):
    """Memory of one thread, page-aligned: the kernel copies 2.2 times slower to other places (measured)."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _SCRATCH_BYTES))
        blocks = [self.view[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES] for n in range(SHORT_BLOCKS)]
        # the first n blocks: as what preadv fills, as a whole and one by one
        self.areas: list[Area] = []
        for n in range(SHORT_BLOCKS + 1):
            area = self.view[: n * BLOCK_BYTES]
            self.areas.append(((area,), area, blocks[:n]))


class LocalPages:
    """The open pages of one process. Thread-safe; what a child inherits by fork stays usable in it."""

    def __init__(self, *, limit: int | None = None, clock: Callable[[], float] = monotonic) -> None:
        """By default an eighth of the descriptors that this process may have, within bounds."""
        self._limit = _usual_limit() if limit is None else limit
        self.now = clock
        self.pages: OrderedDict[Key, HeldPage] = OrderedDict()  # to look at; only methods change it
        self._passed: OrderedDict[Key, UnopenedPage] = OrderedDict()  # not opened yet, those that came last
        self._wasted = self._turn = (
            0  # pages in a row that came along for nothing; reads since they are too many
        )
        self.page_sizes: tuple[int, ...] = ()  # of the workers whose pages are held, mostly one
        self.page_bytes = 1  # the first of them; before it is known a size that no page has
        self._sweep_at = 0.0  # when to look again for pages that nobody reads any more
        self.by_thread = _Scratch()  # shared memory: a child has its own
        self._lock = threading.Lock()  # guards additions to pages; `get` and `move_to_end` are one step each

    def __repr__(self) -> str:
        return f"<LocalPages {len(self.pages)} of {self._limit}>"

    def after_fork(self) -> None:
        """In the child, before anything else; takes no lock."""
        self._lock = threading.Lock()
        self.by_thread = _Scratch()

    def has(self, file: CachedFile, index: int, page_bytes: int) -> bool:
        """Whether a page can be read without asking for it."""
        page = self.pages.get((page_bytes, file.file_id, index))
        return page is not None and page.renew_at >= self.now()

    @property
    def scratch(self) -> memoryview:
        """Memory of the calling thread for one read, of a megabyte."""
        return self.by_thread.view

    @property
    def areas(self) -> list[Area]:
        """The same memory as runs of 0 to SHORT_BLOCKS blocks."""
        return self.by_thread.areas

    def room(self) -> int:
        """How many more pages can be held without closing one that is in use."""
        if len(self.pages) >= self._limit and self.now() >= self._sweep_at:
            self._sweep_at = self.now() + _SWEEP_S
            self._close_outdated()
        return self._limit - len(self.pages)

    def take(self, worker: WorkerClient, file: CachedFile, first: int, count: int, deadline: float) -> bool:
        """Asks `worker` for descriptors of `count` pages from `first`; whether it passed any. CacheError."""
        if worker.no_descriptors_until > self.now():
            return False
        return bool(self._take(worker, file, first, count, deadline))

    def close(self) -> None:
        """Lets go of every page; those in use close when their reads end."""
        with self._lock:
            self.pages.clear()
            self._passed.clear()

    def holds(self, file: CachedFile, start: int, stop: int) -> bool:
        """Whether a read of [start, stop) would need no request: only a guess, pages come and go."""
        now = self.now()
        for page_bytes in self.page_sizes:
            for index in range(start // page_bytes, -(-stop // page_bytes)):
                page = self.pages.get((page_bytes, file.file_id, index))
                if page is None or page.renew_at < now:
                    break
            else:
                return True
        return False

    def read_held(self, file: CachedFile, start: int, view: memoryview) -> int:
        """Bytes at the front of `view` that came from pages at hand, verified. No request is made.

        Raises PageCorrupt, and forgets the page, when one of them is wrong.
        """
        done, want, now = 0, len(view), self.now()
        for page_bytes in self.page_sizes:
            while done < want:
                index, offset = divmod(start + done, page_bytes)
                key = (page_bytes, file.file_id, index)
                page = self.pages.get(key)
                if page is None or page.renew_at < now:
                    break
                count = page.length - offset
                if not done and count >= want:
                    self._read(key, page, file, offset, view)
                    return want
                self._read(key, page, file, offset, view[done : done + count])
                done = min(done + count, want)
        return done

    def read_into(
        self,
        worker: WorkerClient,
        file: CachedFile,
        start: int,
        view: memoryview,
        deadline: float,
        marks: Marks | None = None,
    ) -> int:
        """As `read_held`, and descriptors that are missing are asked of `worker`, which must be local.

        A page that the worker has not got ends it, too: it has to be filled by a normal read. A small read
        of a page that is not at hand is answered by the worker, which passes the page along:
        `marks.hit` then says how, if it came without. Not without `marks`.
        """
        page_bytes, done, want = worker.link.page_bytes, 0, len(view)
        while done < want:
            index = (start + done) // page_bytes
            if (page_bytes, file.file_id, index) in self.pages:
                done += self.read_held(file, start + done, view[done:])
                if done == want:
                    break
                index = (start + done) // page_bytes
            last = (start + want - 1) // page_bytes
            if self._passed and self._open_passed(worker, file, index):
                continue
            count = self._run(file, index, last, page_bytes)
            if worker.no_descriptors_until > self.now():
                break
            if marks is not None and count == 1 and want - done <= _PASSED_BYTES and worker.link.passes_pages:
                if not self._worth_passing():
                    break
                passed = worker.read_passing(file, start + done, view[done:], deadline=deadline, marks=marks)
                if passed is not None:
                    self._keep_passed((page_bytes, file.file_id, index), passed)
                    marks.hit = None
                return want
            if index not in self._take(worker, file, index, count, deadline):
                break
        return done

    def _run(self, file: CachedFile, index: int, last: int, page_bytes: int) -> int:
        """How many pages to ask for: one, or for a reader in sequence what is left of the stripe."""
        sequential = last > index or index == file.last_page + 1
        file.last_page = last
        if not sequential:
            return 1
        stripe_end = (index * page_bytes // STRIPE_BYTES + 1) * STRIPE_BYTES
        pages_end = -(-min(stripe_end, file.size) // page_bytes)
        return min(pages_end - index, MAX_DESCRIPTORS, self._limit // 2)

    def _take(
        self, worker: WorkerClient, file: CachedFile, first: int, count: int, deadline: float
    ) -> Sequence[int]:
        """The pages that came."""
        try:
            passed = worker.descriptors(file, first, count, deadline)
        except CacheError:
            raise
        except (KaraError, OSError, ValueError, NotImplementedError):
            # an answer, but no descriptors: it may refuse them for its own reasons, the read goes on without
            worker.no_descriptors_until = self.now() + _REFUSED_S
            return ()
        return self._keep(worker, file, passed, self.now() + RENEW_S)

    def _keep_passed(self, key: Key, passed: PassedPage) -> None:
        page = UnopenedPage(passed.fd, passed.place, self.now() + RENEW_S)
        with self._lock:
            self._passed[key] = page
            if len(self._passed) > self._limit // 4:
                self._passed.popitem(last=False)
                self._wasted += 1

    def _worth_passing(self) -> bool:
        if self._wasted < _WASTED:
            return True
        self._turn += 1
        return self._turn % _TRIED == 0

    def _open_passed(self, worker: WorkerClient, file: CachedFile, index: int) -> bool:
        """Whether a page is at hand now that came along with an earlier read."""
        page = self._passed.pop((worker.link.page_bytes, file.file_id, index), None)
        if page is None or page.renew_at < self.now():
            return False
        fd, page.fd = page.fd, -1
        self._wasted = 0
        return bool(self._keep(worker, file, (PassedPage(index, fd, page.place),), page.renew_at))

    def _keep(
        self, worker: WorkerClient, file: CachedFile, passed: Sequence[PassedPage], renew_at: float
    ) -> list[int]:
        """Takes over the descriptors whose headers are what they should be; their page indices."""
        page_bytes, kept = worker.link.page_bytes, []
        pages: list[tuple[Key, HeldPage]] = []
        for index, fd, place in passed:
            header = read_header(fd, place, file, index, page_bytes)
            if header is None:
                os.close(fd)
                continue
            start = HEADER_BYTES if place is None else place[1]
            page = HeldPage(fd, header, renew_at, start, in_own_file=place is None)
            pages.append(((page_bytes, file.file_id, index), page))
            kept.append(index)
        with self._lock:
            for key, page in pages:
                self.pages[key] = page
                self.pages.move_to_end(key)
            while len(self.pages) > self._limit:
                self.pages.popitem(last=False)
            if pages and page_bytes not in self.page_sizes:
                self.page_sizes = (*self.page_sizes, page_bytes)
                self.page_bytes = self.page_sizes[0]
        return kept

    def _read(self, key: Key, page: HeldPage, file: CachedFile, offset: int, view: memoryview) -> None:
        """Fills `view` from byte `offset` of the page, verified."""
        header = page.header
        try:
            if len(view) == header.length:
                got = os.preadv(page.fd, [view], page.start)
                good = got == len(view) and checksum(view) == header.page_sum
            else:
                good = self._read_part(page, offset, view)
        except OSError as exc:
            self.forget(key)
            raise PageCorrupt(f"{file.path}: page {key[2]} on this host: {exc}") from exc
        if not good:
            self.forget(key)
            what = f"bytes [{offset}, {offset + len(view)}) are not what was filled"
            raise PageCorrupt(f"{file.path}: page {key[2]} on this host: {what}")
        self._touch(key)

    def _read_part(self, page: HeldPage, offset: int, view: memoryview) -> bool:
        """Whether the blocks under the part are as they were filled; then `view` has the part."""
        stop, step, scratch = offset + len(view), page.block_bytes, self.by_thread.view
        first = offset - offset % step
        last = min(-(-stop // step) * step, page.length)
        size = last - first
        if size > _COPY_BYTES:
            return _read_around(page, offset, view, scratch)
        covered = scratch[:size]
        if os.preadv(page.fd, (covered,), page.start + first) != size:
            return False
        if size <= step:
            good = checksum(covered) == page.block_sums[first // step]
        else:
            good = page.header.verify_blocks(covered, first)
        view[:] = covered[offset - first : stop - first]
        return good

    def touch(self, key: Key, page: HeldPage, now: float) -> None:
        """A use, to be told when `page.touch_at` has passed."""
        page.touch_at = now + _TOUCH_S
        self._touch(key)

    def _touch(self, key: Key) -> None:
        try:  # noqa: SIM105 - as cheap as it gets: `suppress` would cost a tenth of a small read
            self.pages.move_to_end(key)
        except KeyError:
            pass  # evicted by another thread meanwhile

    def _close_outdated(self) -> None:
        """Those that nobody has read since they were to be asked for again."""
        now = self.now()
        with self._lock:
            for key in [key for key, page in self.pages.items() if page.renew_at < now]:
                del self.pages[key]

    def forget(self, key: Key) -> None:
        """A page that turned out to be wrong."""
        with self._lock:
            self.pages.pop(key, None)


def _read_around(page: HeldPage, offset: int, view: memoryview, scratch: memoryview) -> bool:
    """As `LocalPages._read_part`, for parts so long that only the blocks at both ends are worth copying."""
    header, step, stop = page.header, page.block_bytes, offset + len(view)
    first, last = header.cover(offset, stop)
    head_end = first + step if offset > first else first
    tail_start = stop - stop % step if stop < last else last
    head, tail = scratch[: head_end - first], scratch[step : step + last - tail_start]
    middle = view[head_end - offset : tail_start - offset]
    if os.preadv(page.fd, [head, middle, tail], page.start + first) != last - first:
        return False
    parts = ((head, first), (middle, head_end), (tail, tail_start))
    if not all(header.verify_blocks(data, at) for data, at in parts if data):
        return False
    view[: head_end - offset] = head[offset - first :]
    view[tail_start - offset :] = tail[: stop - tail_start]
    return True


def _usual_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_PAGES
    return max(_LEAST_PAGES, min(_MOST_PAGES, soft // 8))
