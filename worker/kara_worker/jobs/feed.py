"""The files of a job in the store's order, listed by a thread that runs ahead, in chunks."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kara_cache.errors import UnderStoreError
from kara_cache.ufs.base import FileInfo
from kara_worker.jobs.ledger import Tally

CHUNK_FILES = 512
CHUNK_BYTES = 1 << 30
_AHEAD = 128  # chunks: 65 536 files, about 30 MiB
_ATTEMPTS = 5  # of a listing that breaks off; each goes on behind the last file that came
_PAUSE_S = 1.0

Entries = Callable[[], Iterator[FileInfo]]


@dataclass(slots=True)
class Chunk:
    """Neighbours in the listing; done when nothing of them is open."""

    files: list[FileInfo]
    open: int = 0
    copies: int = 1  # of each page
    tally: Tally = field(default_factory=Tally)
    lost: Tally = field(default_factory=Tally)  # see `Ledger.lost`


def selected(
    entries: Iterator[FileInfo], root: str, file_filter: str | None, after: str
) -> Iterator[FileInfo]:
    """Files whose path below `root` matches, behind `after`. Listings are sorted, so a place is a path."""
    pattern = re.compile(file_filter) if file_filter else None
    for info in entries:
        if info.is_dir or (after and info.path <= after):
            continue
        if pattern is None or pattern.search(
            info.path[len(root) :].lstrip("/") or info.path.rsplit("/", 1)[-1]
        ):
            yield info


def chunks(files: Iterator[FileInfo]) -> Iterator[Chunk]:
    chunk, size = Chunk([]), 0
    for info in files:
        chunk.files.append(info)
        size += info.size
        if len(chunk.files) == CHUNK_FILES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk([]), 0
    if chunk.files:
        yield chunk


class Feed:
    """Chunks as `take` asks for them. The thread ends with the listing or after `stop`."""

    def __init__(self, entries: Entries, root: str, file_filter: str | None, after: str) -> None:
        """`entries` begins the listing from its first file, each time that it is called."""
        self._entries = entries
        self._root = root
        self._filter = file_filter
        self._after = after
        self._chunks: queue.Queue[Chunk] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self.files = 0  # listed so far behind `after`
        self.bytes = 0
        self.ended = False  # all of them
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._list, name="load-feed", daemon=True)
        self._thread.start()

    def take(self) -> Chunk | None:
        """The next chunk, if it has been listed."""
        try:
            return self._chunks.get_nowait()
        except queue.Empty:
            return None

    @property
    def exhausted(self) -> bool:
        """Nothing more will come."""
        return self.ended and self._chunks.empty()

    def stop(self) -> None:
        self._stopped.set()

    def _list(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            try:
                self._list_on()
                break
            except UnderStoreError as exc:
                attempt += 1
                if attempt == _ATTEMPTS:
                    self.error = exc
                    break
                self._stopped.wait(_PAUSE_S * attempt)
            except Exception as exc:  # noqa: BLE001 - a thread's top: the coordinator says it
                self.error = exc
                break
        self.ended = True

    def _list_on(self) -> None:
        for chunk in chunks(selected(self._entries(), self._root, self._filter, self._after)):
            self.files += len(chunk.files)
            self.bytes += sum(info.size for info in chunk.files)
            self._after = chunk.files[-1].path
            while not self._stopped.is_set():
                try:
                    self._chunks.put(chunk, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set():
                return
