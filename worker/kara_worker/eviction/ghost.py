"""Memory of pages that are not here: a key of 60 bits and the request at which each was used last."""

from __future__ import annotations

import math

from kara_worker.eviction.base import PageKey

_KEY_BITS = 60
_RECENT = 16  # verdicts that the rate is averaged over


def page_key(page: PageKey) -> int:
    """60 bits that stand for a page: half the memory of its name, and the same in every process."""
    mixed = int.from_bytes(page[0][:8], "little") + page[1] * 0x9E3779B97F4A7C15
    mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ (mixed >> 32)) & ((1 << _KEY_BITS) - 1)


class GhostList:
    """At most `limit` pages. When more are met, those with the lowest keys stand for all.

    Spatial sampling with a threshold that falls, after SHARDS (Waldspurger et al., FAST 2015): a page
    is either always in the sample or never, so that the absences of those in it are exact however
    large the data set is. What was decided for them is applied to the rest at the same rate.
    """

    __slots__ = ("_below", "_credit", "_limit", "_rate", "used")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._below = 1 << _KEY_BITS
        self.used: dict[int, int] = {}  # when each was used last, by key
        self._rate = 0.0
        self._credit = 0.0

    def __len__(self) -> int:
        return len(self.used)

    @property
    def sampled(self) -> float:
        """The part of all pages that is in the sample."""
        return self._below / (1 << _KEY_BITS)

    def meet(self, page: PageKey, now: int, stamp: int) -> float | None:
        """Requests since the page was used last, inf if it is new, None if it is not in the sample.

        `stamp` is `now`, rounded down so that many pages share one integer.
        """
        key = page_key(page)
        if key >= self._below:
            return None
        at = self.used.get(key)
        self.used[key] = stamp
        return math.inf if at is None else now - at

    def remember(self, page: PageKey, used_at: int) -> None:
        """A page that has left."""
        if (key := page_key(page)) < self._below:
            self.used[key] = used_at

    def forget(self, page: PageKey) -> None:
        """A page that has come in."""
        self.used.pop(page_key(page), None)

    def prune(self, oldest: int) -> None:
        """Keeps within the limit: drops pages used before request `oldest`, then makes the sample smaller."""
        if len(self.used) <= self._limit:
            return
        self.used = {key: at for key, at in self.used.items() if at >= oldest}
        if len(self.used) * 4 < self._limit:
            self._below = min(self._below * 2, 1 << _KEY_BITS)
        while len(self.used) * 4 > self._limit * 3:
            self._below = self._below * 3 // 4
            self.used = {key: at for key, at in self.used.items() if key < self._below}

    def record(self, admitted: bool) -> None:
        """What was decided for a page in the sample."""
        self._rate += (admitted - self._rate) / _RECENT

    def extrapolate(self) -> bool:
        """A decision for a page outside the sample; over many, True at the rate of those inside."""
        self._credit += self._rate
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
