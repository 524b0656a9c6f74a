"""How much of itself a load gives up while somebody reads. Pure.

As LEDBAT (RFC 6817) does with queues of a line: it makes way when others have to wait, before anything is
lost, and below a quarter only where that helps: a load that hardly uses processors is not what readers wait
for.
"""

from __future__ import annotations

from typing import NamedTuple

LEAST = 1  # so that a load never stands still, however busy the worker is
LATE_S = 0.01  # a hit takes 0.1 ms: this late, readers notice
WAIT_S = 0.0002  # on average: then one wake-up in a hundred waits for milliseconds (measured)
SPENT = 0.08  # of a processor: large files take half of it at 60 MB/s, small ones all at 300 a second
FEW_PART = 4  # of all: so many fill a line
_GROWTH = 1 / 16  # one more after 16 looks, 0.8 s
_SMOOTHING = 1 / 16  # of what is spent: pages of large files come in bursts


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
        self._few = max(LEAST, most // FEW_PART)
        self._limit = float(most)
        self._spent = 0.0

    @property
    def limit(self) -> int:
        return int(self._limit)

    def note(self, look: Look, *, readers: bool) -> None:
        self._spent += _SMOOTHING * (look.spent - self._spent)
        if not readers:
            self._limit = float(self._most)
        elif not look.readers_wait:
            self._limit = min(float(self._most), self._limit + _GROWTH)
        else:
            least = LEAST if self._spent > SPENT else self._few
            self._limit = max(float(min(least, self.limit)), self._limit / 2)
