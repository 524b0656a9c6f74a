"""Over how many connections one large read goes: more only as long as they bring more. Pure."""

from __future__ import annotations

LANES = (1, 2, 4)  # beyond four a link is full, or the processors are
_GAIN = 1.15  # of throughput, for which twice the connections are worth having
_LOSS = 0.95  # with half of them, which is little enough to do with half
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 64  # rounds between two trials


class Lanes:
    """A choice that is tried again now and then, by the throughput of rounds. Not thread-safe.

    It begins with the most, since a process may read one checkpoint and no more, and tries whether half do as
    well. After a trial that was not worth it comes a pause, twice as long each time, and then one in
    the other direction.
    """

    def __init__(self, most: int = LANES[-1]) -> None:
        self._choices = [count for count in LANES if count <= most] or [1]
        self._best = len(self._choices) - 1
        self._speed = 0.0  # of the latest rounds with it, bytes a second
        self._trial: int | None = None
        self._step = -1  # direction of the next trial
        self._left = 1  # rounds before it
        self._pause = _FIRST_PAUSE

    def __repr__(self) -> str:
        return f"<Lanes {self._choices[self._best]}, now {self.count}>"

    @property
    def count(self) -> int:
        """Connections for the next round."""
        return self._choices[self._best if self._trial is None else self._trial]

    @property
    def settled(self) -> bool:
        """Whether no trial is near, so that a round may be long."""
        return self._trial is None and self._left > 1

    def note(self, count: int, speed: float) -> None:
        """A round over `count` connections had this throughput. One of another choice says nothing."""
        if count != self.count:
            return
        if self._trial is None:
            self._speed = (self._speed + speed) / 2 if self._speed else speed
            self._left -= 1
            if self._left <= 0 and len(self._choices) > 1:
                self._trial = self._next_trial()
            return
        trial, self._trial = self._trial, None
        if speed >= self._speed * (_GAIN if trial > self._best else _LOSS):
            self._best, self._speed, self._left, self._pause = trial, speed, 1, _FIRST_PAUSE
        else:
            self._step, self._left = -self._step, self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _next_trial(self) -> int:
        if not 0 <= self._best + self._step < len(self._choices):
            self._step = -self._step
        return self._best + self._step
