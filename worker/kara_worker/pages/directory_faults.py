"""Directories whose disk fails: out of use with all their pages, and tried again, for every kind of shelf."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kara_cache.errors import ConfigError
from kara_worker.pages.page_directory import PageDirectory, is_disk_fault, is_full
from kara_worker.pages.page_space import PageSpace

log = logging.getLogger(__name__)


class DirectoryFaults:
    """Thread-safe. Not to be called with a lock that `give_up`, `take_back` or `listed` take."""

    def __init__(
        self,
        space: PageSpace[Any],
        *,
        give_up: Callable[[PageDirectory], int],
        take_back: Callable[[PageDirectory], None],
        listed: Callable[[], None],
    ) -> None:
        """`give_up` forgets the pages of a directory and says how many; `take_back` is told of one that is
        open again, and may raise ConfigError; `listed` then looks what is there."""
        self._space = space
        self._give_up = give_up
        self._take_back = take_back
        self._list = listed
        self._lock = threading.Lock()  # one at a time gives up and comes back
        self._out: list[PageDirectory] = []
        self._closed = False

    def failed(self, directory: PageDirectory, error: OSError) -> None:
        if not is_full(error):
            self._space.disk_error()
            level = logging.WARNING if is_disk_fault(error) else logging.DEBUG
            log.log(level, "%s: %s", directory.root, error)
        if not directory.failed(error) or directory in self._out:
            return
        with self._lock:
            if directory in self._out:
                return
            self._out.append(directory)
            count = self._give_up(directory)
        log.error("page directory %s: out of use with %d pages: %s", directory.root, count, error)
        if directory.is_gone():  # most likely wiped by hand: go on with an empty one at once
            self.revive()

    def revive(self) -> int:
        """Tries the directories that are out of use; the number of those that serve again, pages and all."""
        with self._lock:
            out = list(self._out)
        return sum(self._revive(directory) for directory in out)

    def _revive(self, directory: PageDirectory) -> bool:
        with self._lock:
            if self._closed or directory not in self._out:  # another thread was first
                return False
            try:
                directory.open()
                self._take_back(directory)
            except ConfigError as exc:
                log.debug("still out of use: %s", exc)
                return False
            self._out.remove(directory)
        self._list()
        log.info("page directory %s: in use again", directory.root)
        return True

    def close(self) -> bool:
        """No directory comes back any more; False the second time."""
        with self._lock:
            closed, self._closed = self._closed, True
        return not closed
