"""A program on a terminal, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import pyte

WAIT_S = 60.0


class Terminal:
    """Runs a program on a pseudo terminal of its own, with a real emulator behind it."""

    def __init__(
        self, command: Sequence[str], *, lines: int = 24, columns: int = 80, **environment: str
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._ours, theirs = pty.openpty()
        self._set_size(lines, columns)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "linux", "LC_ALL": "C.UTF-8", **environment},
            start_new_session=True,  # so that the terminal is its own
        )
        os.close(theirs)
        self.ended = False

    @property
    def display(self) -> list[str]:
        """Lines without the spaces at their ends."""
        return [line.rstrip() for line in self._screen.display]

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, lines: int, columns: int) -> None:
        self._screen.resize(lines, columns)
        self._set_size(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, shown: str | Callable[[list[str]], bool]) -> list[str]:
        """The screen, as soon as a line has `shown` in it."""
        wanted = shown if callable(shown) else lambda lines: any(shown in line for line in lines)
        deadline = time.monotonic() + WAIT_S
        while not wanted(self.display):
            assert not self.ended, f"{shown!r} was never there: {self.display}"
            self._read(deadline)
        return self.display

    def wait_for_end(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while not self.ended:
            self._read(deadline)
        return self.process.wait(WAIT_S)

    def _read(self, deadline: float) -> None:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more for {WAIT_S} s: {self.display}"
        try:
            piece = os.read(self._ours, 65536)
        except OSError:  # EIO: the other end is closed
            piece = b""
        self.ended = not piece
        self._stream.feed(piece)

    def _set_size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        os.close(self._ours)
