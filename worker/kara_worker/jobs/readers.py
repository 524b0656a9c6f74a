"""Whether anybody reads, from this worker or from another one of the same job. Pure."""

from __future__ import annotations

from collections.abc import Callable

ELSEWHERE_S = 5.0  # that readers of others are believed in: a batch, which tells of them, takes seconds
_LATELY_S = 1.0  # between two reads of somebody who reads


class Readers:
    """By now, that is; those who read less than once a second come and go."""

    def __init__(self, reads: Callable[[], int], clock: Callable[[], float]) -> None:
        """`reads` counts the pages that readers have asked for so far."""
        self._reads = reads
        self._clock = clock
        self._seen = reads()
        self._here_until = self._elsewhere_until = 0.0

    def look(self) -> bool:
        """To be called several times a second: whether there are any, here or elsewhere."""
        before, self._seen, now = self._seen, self._reads(), self._clock()
        if self._seen != before:
            self._here_until = now + _LATELY_S
        return now < max(self._here_until, self._elsewhere_until)

    def are_elsewhere(self) -> None:
        """A coordinator has heard of them from another worker, or from this one."""
        self._elsewhere_until = self._clock() + ELSEWHERE_S

    @property
    def here(self) -> bool:
        return self._clock() < self._here_until
