"""A format at work in its own process and environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.asked_process import AskedError as MeasureError
from benchmarks.asked_process import AskedProcess

__all__ = ["FormatProcess", "MeasureError"]

_FORMATS = Path(__file__).resolve().parent / "formats"


class FormatProcess:
    """One format, opened on one place: benchmarks/rows/formats/measure.py. Requests are answered in turn."""

    def __init__(self, python: Path, module: str, place: str, log: Path) -> None:
        """MeasureError where it does not start."""
        self._process = AskedProcess(
            [str(python), str(_FORMATS / "measure.py"), module, place], log, environment={}
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, column: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """MeasureError when it fails, or says nothing in time: then it is killed."""
        return self._process.ask({"column": column, **arguments}, timeout_s)

    def close(self) -> None:
        self._process.close()
