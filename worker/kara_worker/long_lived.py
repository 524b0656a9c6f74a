"""What lives as long as the process, and which the garbage collector therefore passes over."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_FIRST = 1 << 16  # pages; looking at the books of fewer takes a few milliseconds


class LongLived:
    """A full collection looks at everything that may be part of a cycle, and nobody is served meanwhile.

    Modules, classes and the books of the page store are most of that, and never garbage. They are taken out
    of the collector's lists (`gc.freeze`) after the start, and whenever there are twice as many pages, since
    parts of the books are made with the first page of a mount. Reference counts free what leaves them.
    """

    def __init__(self) -> None:
        self._next = _FIRST

    @contextmanager
    def made(self) -> Iterator[None]:
        """What is made inside stays. Nothing of it is garbage, so the collector does not run meanwhile."""
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
            gc.freeze()
            _give_back()
        finally:
            if enabled:
                gc.enable()

    def grown(self, pages: int) -> None:
        """To be called now and then, with the number of pages."""
        if pages >= self._next:
            gc.collect(1)  # what is garbage now would stay: all but the little that the oldest has
            gc.freeze()
            _give_back()
            self._next = 2 * pages


def _give_back() -> None:
    """What the C library holds of tables that grew into larger ones: 72 MB of a million pages (measured)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(ctypes.c_size_t(0))
