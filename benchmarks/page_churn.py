"""What a page store costs: `python -m benchmarks.page_churn [--quick] [--dir DIR] [--out FILE]`.

Churn: a full store that takes one new page for each old one that goes, in rounds that take turns: a file
for each page as `unlink` + `create` + `rename` without any store, the store of files, the store of segments.
Wall and processor time of the whole process (threads that clean up count), as ratios of the same round.
Restart: 200 000 pages, after a clean end and after a kill. Memory: of the index of those pages. Reads: with
10 000 and with 1 000 000 pages of a few bytes, of pages that are open and of others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kara_cache.page import HEADER_BYTES, PageHeader, PageId, file_id
from kara_worker.eviction import LeastRecentlyUsed, make_policy
from kara_worker.pages.file_page_store import FilePageStore
from kara_worker.segments.page_store import SegmentPageStore
from kara_worker.segments.segment import allocate

PAGE_BYTES = 1 << 20
NOW_NS = 1_700_000_000_000_000_000
FILE_PAGES = 64
Put = Callable[[int], None]


@dataclass
class Churn:
    """Of one page size: microseconds a page, medians over rounds; ratios are medians of those of a round."""

    size: int
    wall_us: dict[str, float] = field(default_factory=dict)
    cpu_us: dict[str, float] = field(default_factory=dict)
    unlink_create_wall: float = 0.0  # unlink + create against segments
    unlink_create_cpu: float = 0.0
    files_wall: float = 0.0  # the store of files against segments
    files_cpu: float = 0.0
    most_wall: float = 0.0  # unlink + create against what the kernel alone takes for segments
    most_cpu: float = 0.0


@dataclass
class Result:
    churn: list[Churn] = field(default_factory=list)
    pages: int = 0
    restart_clean_s: float = 0.0
    restart_killed_s: float = 0.0
    restart_per_200_000_s: float = 0.0
    index_bytes_per_page: float = 0.0
    with_policy_bytes_per_page: float = 0.0
    get_us: dict[int, float] = field(default_factory=dict)  # by pages in the store; a page that is not open
    peek_us: dict[int, float] = field(default_factory=dict)
    get_growth: float = 0.0
    peek_growth: float = 0.0


class NoPolicy(LeastRecentlyUsed):
    """Remembers nothing, so that what is measured is the index."""

    def track(self, page: PageId, size: int, group: str) -> None:
        pass


def plain_files(root: Path, data: bytes, live: int) -> Put:
    """One file a page, nothing else: the header and the data written, renamed, the oldest file unlinked."""
    root.mkdir()
    names: deque[str] = deque()
    header, temporary = bytes(HEADER_BYTES), str(root / "tmp")

    def put(number: int) -> None:
        if len(names) >= live:
            os.unlink(names.popleft())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.writev(fd, [header, data])
        os.close(fd)
        names.append(str(root / f"{number:x}"))
        os.rename(temporary, names[-1])

    return put


def bare_segments(root: Path, data: bytes, live: int, segment_bytes: int) -> Put:
    """What the kernel takes for segments alone: one write a page, into the oldest file again, whose memory it
    has. No journal, no books, no sums: no store can be cheaper."""
    root.mkdir()
    record = HEADER_BYTES + len(data)
    each = segment_bytes // record
    names: deque[str] = deque()
    header, fds = bytes(HEADER_BYTES), [-1]

    def put(number: int) -> None:
        at = number % each
        if not at:
            name = str(root / f"{number:x}")
            if (len(names) - 1) * each >= live:
                os.rename(names.popleft(), name)
            names.append(name)
            if fds[0] >= 0:
                os.close(fds[0])
            fds[0] = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
            allocate(fds[0], segment_bytes)
        os.pwritev(fds[0], [header, data], at * record)

    return put


def stored(store: FilePageStore | SegmentPageStore, header: PageHeader, data: bytes) -> Put:
    """The same data again and again, as pages of files of 64 pages."""
    view = memoryview(data)
    identities = [file_id(f"/m/{number}", "v", 1) for number in range(1024)]

    def put(number: int) -> None:
        turn, index = divmod(number, FILE_PAGES)
        page = PageId(identities[turn % 1024], index + FILE_PAGES * (turn // 1024))
        of_page = PageHeader(
            page,
            header.length,
            header.page_bytes,
            header.block_bytes,
            header.page_sum,
            header.block_sums,
            NOW_NS,
            f"/m/{turn % 1024}",
        )
        if not store.put(of_page, view):
            raise SystemExit(f"{store!r} took no page: {store.stats()}")

    return put


def churn(root: Path, size: int, live: int, count: int, rounds: int) -> Churn:
    data = random.Random(size).randbytes(size)
    page_bytes = max(size, 64 << 10)
    header = PageHeader.of(PageId(b"f" * 16, 0), data, page_bytes=page_bytes, created_ns=NOW_NS)
    capacity = int(live * (size + HEADER_BYTES) / 0.95)
    files = FilePageStore([root / "files"], capacity, page_bytes, LeastRecentlyUsed(), min_free_bytes=0)
    segments = SegmentPageStore(
        [root / "segments"], capacity, page_bytes, LeastRecentlyUsed(), min_free_bytes=0
    )
    kinds = {
        "unlink_create": plain_files(root / "plain", data, live),
        "kernel": bare_segments(root / "bare", data, live, min(32 << 20, capacity // 64)),
        "files": stored(files, header, data),
        "segments": stored(segments, header, data),
    }
    number = dict.fromkeys(kinds, 0)
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_ in range(-1, rounds):
        for kind, put in kinds.items():
            pages = count if round_ >= 0 else live + count
            began, cpu_began = time.perf_counter(), time.process_time()
            for index in range(number[kind], number[kind] + pages):
                put(index)
            took, cpu_took = time.perf_counter() - began, time.process_time() - cpu_began
            number[kind] += pages
            if round_ >= 0:
                wall[kind].append(took / pages * 1e6)
                cpu[kind].append(cpu_took / pages * 1e6)
    files.close()
    segments.close()
    result = Churn(size, _medians(wall), _medians(cpu))
    result.unlink_create_wall = _ratio(wall, "unlink_create")
    result.unlink_create_cpu = _ratio(cpu, "unlink_create")
    result.files_wall, result.files_cpu = _ratio(wall, "files"), _ratio(cpu, "files")
    result.most_wall, result.most_cpu = (_ratio(of, "unlink_create", "kernel") for of in (wall, cpu))
    return result


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {kind: statistics.median(of_kind) for kind, of_kind in values.items()}


def _ratio(values: dict[str, list[float]], kind: str, against: str = "segments") -> float:
    return statistics.median(a / b for a, b in zip(values[kind], values[against], strict=True))


def small_page(number: int) -> tuple[PageHeader, memoryview]:
    data = b"%d" % number
    path = f"/m/{number // FILE_PAGES}"
    page = PageId(file_id(path, "v", 1), number % FILE_PAGES)
    return PageHeader.of(page, data, page_bytes=PAGE_BYTES, created_ns=NOW_NS, path=path), memoryview(data)


def open_small(root: Path, *, policy: LeastRecentlyUsed | None = None) -> SegmentPageStore:
    chosen = make_policy("s3fifo", guard=True) if policy is None else policy
    return SegmentPageStore([root], 1 << 40, PAGE_BYTES, chosen, min_free_bytes=0)


def fill(root: Path, pages: int) -> None:
    """By a process that ends without closing anything."""
    child = os.fork()
    if not child:
        store = open_small(root)
        for number in range(pages):
            store.put(*small_page(number), group="m")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"filling ended with {status}")


def restart(root: Path, pages: int, rounds: int, result: Result) -> None:
    fill(root / "killed", pages)
    killed: list[float] = []
    clean: list[float] = []
    for _ in range(rounds):
        shutil.copytree(root / "killed", root / "copy")
        for times in (killed, clean):
            began = time.perf_counter()
            store = open_small(root / "copy")
            times.append(time.perf_counter() - began)
            if store.stats().pages != pages:
                raise SystemExit(f"{store.stats().pages} of {pages} pages are back")
            store.close()
        shutil.rmtree(root / "copy")
    result.pages = pages
    result.restart_killed_s, result.restart_clean_s = statistics.median(killed), statistics.median(clean)
    result.restart_per_200_000_s = result.restart_clean_s * 200_000 / pages
    for policy, name in ((NoPolicy(), "index_bytes_per_page"), (None, "with_policy_bytes_per_page")):
        tracemalloc.start()
        store = open_small(root / "killed", policy=policy)
        setattr(result, name, tracemalloc.get_traced_memory()[0] / pages)
        tracemalloc.stop()
        store.close()


def reads(root: Path, counts: list[int], sample: int, rounds: int, result: Result) -> None:
    """The larger store is measured in turn with the smaller."""
    stores = {}
    for count in counts:
        fill(root / str(count), count)
        stores[count] = open_small(root / str(count))
    gets: dict[int, list[float]] = {count: [] for count in counts}
    peeks: dict[int, list[float]] = {count: [] for count in counts}
    source = random.Random(7)
    for _ in range(rounds):
        for count, store in stores.items():
            chosen = [small_page(source.randrange(count))[0].page for _ in range(sample)]
            store._space.close_all()
            gets[count].append(_read(store, chosen))
            peeks[count].append(_read(store, chosen))
    for count, store in stores.items():
        result.get_us[count] = statistics.median(gets[count])
        result.peek_us[count] = statistics.median(peeks[count])
        store.close()
    first, last = counts[0], counts[-1]
    result.get_growth = statistics.median(b / a for a, b in zip(gets[first], gets[last], strict=True))
    result.peek_growth = statistics.median(b / a for a, b in zip(peeks[first], peeks[last], strict=True))


def _read(store: SegmentPageStore, pages: list[PageId]) -> float:
    """Microseconds of processor time for each."""
    began = time.process_time()
    for page in pages:
        found = store.get(page)
        assert found is not None
        os.pread(found.fd, found.header.length, found.offset)
    return (time.process_time() - began) / len(pages) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--dir", help="where to write; on the disk that is meant, not in memory")
    parser.add_argument("--out", help="the figures as JSON")
    parser.add_argument("--restart", type=int, help="pages to restart with; default 200 000, quick a tenth")
    options = parser.parse_args()
    part = 10 if options.quick else 1
    result = Result()
    root = Path(tempfile.mkdtemp(prefix="kara-churn-", dir=options.dir))
    try:
        sizes = ((1 << 20, 2048, 256, 9), (64 << 10, 16_384, 2048, 9), (4 << 10, 65_536, 8192, 9))
        for size, live, count, rounds in sizes:
            place = root / str(size)
            place.mkdir()
            result.churn.append(churn(place, size, live // part, count // part, rounds if part == 1 else 3))
            shutil.rmtree(place)
            _print_churn(result.churn[-1])
        restart(root, options.restart or 200_000 // part, 5 if part == 1 else 1, result)
        print(
            f"restart of {result.pages} pages: {result.restart_clean_s:.3f} s, "
            f"after a kill {result.restart_killed_s:.3f} s; "
            f"per 200 000 pages {result.restart_per_200_000_s:.3f} s\n"
            f"memory per page: {result.index_bytes_per_page:.0f} B, "
            f"with the policy {result.with_policy_bytes_per_page:.0f} B",
            flush=True,
        )
        reads(root, [10_000 // part, 1_000_000 // part], 2000, 9, result)
        for count, took in result.get_us.items():
            print(f"{count} pages: get {took:.1f} us, open already {result.peek_us[count]:.1f} us")
        print(f"growth: get {result.get_growth:.2f}x, open already {result.peek_growth:.2f}x")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if options.out:
        Path(options.out).write_text(json.dumps(asdict(result), indent=1) + "\n")
    return 0


def _print_churn(churn: Churn) -> None:
    wall, cpu = churn.wall_us, churn.cpu_us
    print(f"churn of {churn.size >> 10} KiB pages, us a page (processor time):", flush=True)
    for kind in wall:
        print(f"  {kind:14} {wall[kind]:8.1f} ({cpu[kind]:.1f})")
    print(
        f"  unlink + create against segments {churn.unlink_create_wall:.1f}x "
        f"({churn.unlink_create_cpu:.1f}x), "
        f"store of files {churn.files_wall:.1f}x ({churn.files_cpu:.1f}x), "
        f"at most {churn.most_wall:.1f}x ({churn.most_cpu:.1f}x): the kernel's part of segments alone",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
