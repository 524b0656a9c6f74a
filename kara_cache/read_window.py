"""Read-ahead as arithmetic: whether a reader goes in sequence, and what to fetch for it in advance.

The same idea as the read-ahead of Linux: start small, double while the reader keeps coming, never
fetch for one that jumps about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

UNIT_BYTES = (
    1 << 20
)  # the default page of a worker: no chunk fetches a part of a page that it then wants again
MAX_CHUNK_BYTES = 8 << 20  # what a worker asks its store for in one request
_STRAYS = 2  # reads elsewhere, in a row, after which the sequence is given up


class Window(NamedTuple):  # one is made for each read: a dataclass would take three times as long
    """What is known of one reader."""

    position: int = -1  # where its next read begins if it goes on in sequence
    ahead: int = 0  # bytes to hold beyond the position; 0 until it has read in sequence
    stray: int = -1  # where the latest read elsewhere ended
    strays: int = 0

    @property
    def chunk_bytes(self) -> int:
        """A quarter of the window, so that several are under way, as a power of two of pages."""
        size = UNIT_BYTES
        while size < MAX_CHUNK_BYTES and size * 8 <= self.ahead:
            size *= 2
        return size


def after_read(window: Window, start: int, stop: int, limit: int) -> Window:
    """The window once [start, stop) was asked for; it never exceeds `limit` bytes."""
    if window.position < 0:
        return Window(position=stop)
    if start == window.position:
        ahead = window.ahead
        if not ahead:
            ahead = UNIT_BYTES
        elif start // UNIT_BYTES != stop // UNIT_BYTES:
            ahead *= 2
        return Window(position=stop, ahead=min(ahead, limit) if limit >= UNIT_BYTES else 0)
    if start == window.stray:
        return Window(position=stop, ahead=UNIT_BYTES if limit >= UNIT_BYTES else 0)
    if window.strays + 1 >= _STRAYS:
        return Window(position=stop)
    return Window(window.position, window.ahead, stop, window.strays + 1)


def goes_on(window: Window, start: int, stop: int) -> bool:
    """Whether [start, stop) only continues within a unit for which `wanted` was asked already."""
    return (
        start == window.position
        and window.ahead > 0
        and start % UNIT_BYTES != 0
        and start // UNIT_BYTES == stop // UNIT_BYTES
    )


def wanted(
    window: Window, start: int, stop: int, size: int, held: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Chunks [from, to) to fetch after `after_read` of [start, stop), in order, nothing of `held` again.

    `held` are chunks at hand or under way, by position. A short read in sequence gets a chunk for its own
    bytes; a long one takes them straight into its buffer. Chunks end at multiples of the chunk size.
    """
    if not window.ahead or window.position != stop:
        return
    step = window.chunk_bytes
    at = start if stop - start < UNIT_BYTES else stop
    end = min(size, -(-(stop + window.ahead) // step) * step)
    for held_start, held_stop in (*held, (end, end)):
        gap_end = min(held_start, end)
        while at < gap_end:
            to = min(gap_end, at - at % step + step)
            yield at, to
            at = to
        at = max(at, held_stop)


def outdated(window: Window, at: int, start: int, stop: int) -> bool:
    """Whether the chunk [start, stop) can go when a read begins at `at`.

    It can when it lies more than a unit behind, or out of reach ahead.
    """
    if not window.ahead:
        return True
    return stop + UNIT_BYTES <= at or start > window.position + 2 * window.ahead
