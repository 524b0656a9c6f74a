"""What the stores have listed, as long as their mounts trust it: packed, in pages, found by name."""

from __future__ import annotations

import asyncio
import json
import math
import time
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import dropwhile, islice

from kara_cache.mount import normalize_path
from kara_cache.ufs.base import FileInfo
from kara_cache.ufs.path import listing_key
from kara_cache.wire import decode_info, encode_info
from kara_worker.mount_threads import MountThreads
from kara_worker.mounted_stores import MountedStores

PAGE_ENTRIES = 1000  # what OSS and S3 give in one answer
_BUDGET_BYTES = 64 << 20  # of all listings together, packed: 20 to 60 bytes an entry
_TOO_LARGE_S = 600.0  # before it is tried again to keep a listing that did not fit

Key = tuple[str, bool]  # path, and whether it is recursive


class KeptListing:
    """One listing, as far as somebody has asked for it. `pages` are deflated JSON lines."""

    def __init__(self, entries: Iterator[FileInfo], since: float) -> None:
        self.since = since  # when the store was asked first
        self.complete = False
        self.dropped = False  # it has changed: for those who read it now, nobody else
        self.closed = False  # the rest is not kept, for want of room or because the store failed
        self.pages: list[bytes] = []
        self.firsts: list[str] = []  # of each page, the `listing_key` of its first entry
        self.last = ""  # `listing_key` of the last entry of all
        self.size = 0
        self.entries = entries
        self.turn = asyncio.Lock()  # the store is asked by one reader at a time

    def __repr__(self) -> str:
        state = "complete" if self.complete else "partial"
        return f"<KeptListing {len(self.pages)} pages, {self.size} bytes, {state}>"

    def find(self, path: str) -> FileInfo | None:
        """The entry of a file, if it is in a page that is here."""
        number = bisect_right(self.firsts, path) - 1
        if number < 0:
            return None
        start = f'{{"path": {json.dumps(path)}, '.encode()
        lines = b"\n" + zlib.decompress(self.pages[number])
        at = lines.find(b"\n" + start)
        if at < 0:
            return None
        info = decode_info(json.loads(lines[at + 1 : lines.index(b"\n", at + 1)]))
        return None if info.is_dir else info


class Listings:
    """Of mounts that say `max_age` or `immutable`; those of others always come from the store, and so
    does what did not fit into the budget. Who asks for the same at the same time shares one. Event loop only.
    """

    def __init__(
        self,
        stores: MountedStores,
        threads: MountThreads,
        *,
        budget_bytes: int = _BUDGET_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = stores
        self._threads = threads
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._kept: OrderedDict[Key, KeptListing] = OrderedDict()  # least recently used first
        self._too_large: dict[Key, float] = {}  # when it turned out
        self.held_bytes = 0  # of all in _kept

    def __repr__(self) -> str:
        return f"<Listings {len(self._kept)}, {self.held_bytes} of {self._budget_bytes} bytes>"

    async def pages(
        self, path: str, *, recursive: bool, max_age_s: float = math.inf
    ) -> AsyncGenerator[bytes, None]:
        """JSON lines of `encode_info`, some hundred kilobytes at a time, as the store lists them.

        Nothing that was asked of the store more than `max_age_s` ago. Raises what the store says, a
        missing directory before the first page.
        """
        key = self._key(path, recursive)
        listing = None if key is None else self._listing(key, max_age_s)
        number, last = 0, ""
        while listing is not None and key is not None:
            page = await self._page(key, listing, number)
            if page is None:
                if listing.complete:
                    return
                last = listing.last
                break
            yield page
            number += 1
        entries = self._stores.list(path, recursive=recursive)
        if last:  # stores list in one order, that of the keys
            entries = dropwhile(lambda info: _key_of(info) <= last, entries)
        while page := (await self._in_thread(path, _lines, entries))[0]:
            yield page

    def find(self, path: str) -> tuple[float, FileInfo] | None:
        """A file in any of the listings, and when the store was asked for it."""
        above, recursive = path.rpartition("/")[0], False
        while above:
            for key in ((above, True),) if recursive else ((above, False), (above, True)):
                listing = self._kept.get(key)
                if listing is not None and (info := listing.find(path)) is not None:
                    return listing.since, info
            above, recursive = above.rpartition("/")[0], True
        return None

    def forget(self, path: str) -> None:
        """Those that a change of `path` concerns: its own, and of all directories above it."""
        while path:
            self._drop((path, False))
            self._drop((path, True))
            path = path.rpartition("/")[0]

    def clear(self) -> None:
        for key in list(self._kept):
            self._drop(key)
        self._too_large.clear()

    def _key(self, path: str, recursive: bool) -> Key | None:
        """None where the store is asked every time."""
        if path == "/":
            return None
        key = normalize_path(path), recursive
        mount, _ = self._stores.locate(path)
        if not mount.freshness.trusts(0):
            return None
        since = self._too_large.get(key)
        if since is not None:
            if self._clock() - since < _TOO_LARGE_S:
                return None
            del self._too_large[key]
        return key

    def _listing(self, key: Key, max_age_s: float) -> KeptListing:
        now = self._clock()
        listing = self._kept.get(key)
        if listing is not None:
            mount, _ = self._stores.locate(key[0])
            age_s = now - listing.since
            if mount.freshness.trusts(age_s) and age_s <= max_age_s:
                self._kept.move_to_end(key)
                return listing
            self._drop(key)
        listing = self._kept[key] = KeptListing(self._stores.list(key[0], recursive=key[1]), now)
        return listing

    async def _page(self, key: Key, listing: KeptListing, number: int) -> bytes | None:
        """None at the end, and where the rest is not kept."""
        if number >= len(listing.pages):
            async with listing.turn:
                if number >= len(listing.pages) and not (listing.complete or listing.closed):
                    await self._extend(key, listing)
            if number >= len(listing.pages):
                return None
        return zlib.decompress(listing.pages[number])

    async def _extend(self, key: Key, listing: KeptListing) -> None:
        """One page more. What failed is asked anew by the next reader, and so is what a reader left
        behind: a thread may still be in its iterator."""
        done = False
        try:
            lines, first, last, packed = await self._in_thread(key[0], _packed, listing.entries)
            done = True
        finally:
            if not done:
                self._close(key, listing)
        if not lines:
            listing.complete = True
            return
        listing.pages.append(packed)
        listing.firsts.append(first)
        listing.last = last
        listing.size += len(packed)
        if not listing.dropped:
            self.held_bytes += len(packed)
            self._make_room(key, listing)

    def _make_room(self, key: Key, listing: KeptListing) -> None:
        if listing.size > self._budget_bytes:
            self._close(key, listing)
            self._too_large[key] = self._clock()
        while self.held_bytes > self._budget_bytes:
            self._close(*next(iter(self._kept.items())))

    def _close(self, key: Key, listing: KeptListing) -> None:
        listing.closed = True
        if self._kept.get(key) is listing:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.held_bytes -= found.size
            found.dropped = True

    async def _in_thread(
        self, path: str, work: Callable[[Iterator[FileInfo]], Lines], entries: Iterator[FileInfo]
    ) -> Lines:
        threads = self._threads.of("" if path == "/" else self._stores.locate(path)[0].name)
        return await asyncio.get_running_loop().run_in_executor(threads, work, entries)


Lines = tuple[bytes, str, str, bytes]  # of a page, keys of its first and last entry; the lines deflated
Work = Callable[[Iterator[FileInfo]], Lines]


def _lines(entries: Iterator[FileInfo]) -> Lines:
    """The next page, in a thread: none is left where it is empty."""
    infos = list(islice(entries, PAGE_ENTRIES))
    if not infos:
        return b"", "", "", b""
    lines = "".join([json.dumps(encode_info(info)) + "\n" for info in infos]).encode()
    return lines, _key_of(infos[0]), _key_of(infos[-1]), b""


def _packed(entries: Iterator[FileInfo]) -> Lines:
    lines, first, last, _ = _lines(entries)
    return lines, first, last, zlib.compress(lines, 1) if lines else b""


def _key_of(info: FileInfo) -> str:
    return listing_key(info.path, info.is_dir)
