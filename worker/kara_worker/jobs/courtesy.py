"""How much of itself a load gives up while somebody reads. Pure.

As LEDBAT (RFC 6817) does with queues of a line: it makes way when others have to wait, before anything is
lost, and only where that helps: a load that hardly uses processors is not what readers wait for.
"""

from __future__ import annotations

from typing import NamedTuple

LEAST = 1  # so that a load never stands still, however busy the worker is
LATE_S = 0.01  # a hit takes 0.1 ms: this late, readers notice
WAIT_S = 0.0002  # on average: then one wake-up in a hundred waits for milliseconds (measured)
SPENT = 0.06  # of a processor: large files come at the speed of a line with half of that
_GROWTH = 1 / 16  # one more after 16 looks, 0.8 s


class Look(NamedTuple):
    """What a worker has seen of itself since it looked last."""

    late_s: float  # the event loop, for this look
    wait_s: float  # of the event loop's thread for a processor, on average, when it had something to do
    spent: float  # processors that its other threads had

    @property
    def readers_wait(self) -> bool:
        return self.late_s > LATE_S or self.wait_s > WAIT_S


class Courtesy:
    """Requests at a time that readers leave: halved for each look at which they would have waited, one
    more after sixteen at which they would not (as TCP shares a line, Chiu and Jain 1989); all where nobody
    reads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self._limit = float(most)

    @property
    def limit(self) -> int:
        return int(self._limit)

    def note(self, look: Look, *, readers: bool) -> None:
        if not readers:
            self._limit = float(self._most)
        elif not look.readers_wait:
            self._limit = min(float(self._most), self._limit + _GROWTH)
        elif look.spent > SPENT:
            self._limit = max(float(self._least), self._limit / 2)
