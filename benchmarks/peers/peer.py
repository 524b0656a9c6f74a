"""What a file of this package says of its peer.

`serve` runs here and starts the peer with the file that everybody reads. `Reader`, a class of the same
module, runs in the peer's own environment (benchmarks/peers/reading.py), so these modules import at their
top only what every Python has.

    Reader(options)                     `options` are those of Served; a connection, an open file
        prepare(length, places)         optional: the reads that follow are of these
        read(length, start)             bytes, or anything that bytes() can read
        close()                         optional
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.published import InstallError, environment
from benchmarks.servers import which

if TYPE_CHECKING:
    from benchmarks.scene import Scene

KIB, MIB = 1 << 10, 1 << 20
LENGTHS = {"4 KiB": 4 * KIB, "100 KiB": 100 * KIB, "1 MiB": MIB, "whole file": 0}


class UnavailableError(RuntimeError):
    """Why a peer cannot be measured here. Goes into the report."""


@dataclass(frozen=True)
class Served:
    """A peer that runs."""

    options: dict[str, Any]  # for its Reader; plain JSON
    pids: tuple[int, ...] = ()
    misses: Callable[[], float] | None = None  # requests, or bytes, that it had to get from elsewhere so far


@dataclass(frozen=True)
class Peer:
    name: str
    key: str
    module: str
    what: str  # what runs, in a line
    serve: Callable[[Scene], AbstractContextManager[Served]] = field(repr=False)
    rival: str = "kara_tcp"  # the one of ours that does the same job
    requirements: tuple[str, ...] = ()
    programs: dict[str, str] = field(default_factory=dict)  # Debian's packages by program
    lengths: tuple[str, ...] = tuple(LENGTHS)

    def python(self) -> Path:
        """The interpreter that has its client; UnavailableError where it cannot be had."""
        missing = [package for program, package in self.programs.items() if which(program) is None]
        if missing:
            raise UnavailableError(f"not installed: {', '.join(missing)} (Debian)")
        if not self.requirements:
            return Path(sys.executable)
        try:
            return environment(*self.requirements)
        except InstallError as exc:
            raise UnavailableError(f"cannot be installed: {str(exc).strip().splitlines()[-1][:200]}") from exc
