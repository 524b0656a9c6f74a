"""The largest of the values seen lately, without keeping them."""

from __future__ import annotations


class RecentMax:
    """Two generations: a value counts for at least one full generation and at most two."""

    __slots__ = ("_previous", "current")

    def __init__(self) -> None:
        self.current = 0  # raised directly where a call would cost too much
        self._previous = 0

    def add(self, value: int) -> None:
        if value > self.current:
            self.current = value

    def turn(self) -> None:
        """Begins a new generation."""
        self._previous, self.current = self.current, 0

    @property
    def value(self) -> int:
        return max(self.current, self._previous)
