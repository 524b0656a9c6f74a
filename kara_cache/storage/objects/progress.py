"""Bars of bytes on stderr, with the words of the published package."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any


class Bar(AbstractContextManager["Bar"]):
    """Takes counts from any thread. Where it is not wanted nothing is imported or shown."""

    def __init__(self, label: str, total: int, *, shown: bool) -> None:
        self._lock = threading.Lock()  # guards _bar: tqdm's own counter is not safe without
        self._bar: Any = None  # tqdm comes without types
        if shown:
            from tqdm import tqdm  # 20 ms

            self._bar = tqdm(
                desc=label, total=total, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr
            )

    def update(self, count: int) -> None:
        if self._bar is not None:
            with self._lock:
                self._bar.update(count)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
