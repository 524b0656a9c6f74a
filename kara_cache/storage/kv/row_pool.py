"""Rows as objects, the last used ones, and which of them have changed since they were stored.

A row that somebody still holds, or holds a part of, stays in the pool beyond its size, because it may
change without our seeing it. Only CPython can tell: by comparing an object's reference count with the
references that are found from the pool.
"""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from kara_cache.checksum import checksum
from kara_cache.serialization import Serializer

_ATOMS = frozenset({bytes, str, int, float, complex, bool, type(None)})
_NOT_DATA = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, CodeType)


class PooledRow:
    """`stored` is the checksum of the row as it is stored, None where it cannot change."""

    __slots__ = ("row", "stored")

    def __init__(self, row: Any, stored: int | None) -> None:
        self.row = row
        self.stored = stored


ChangedRow = tuple[str, PooledRow, bytes]
"""Its key, the row, and what it would be stored as."""


class RowPool:
    """By key, in the order of use. Not thread-safe."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"pool size {size}: want at least 1 row")
        self.size = size
        self._rows: OrderedDict[str, PooledRow] = OrderedDict()
        self._limit = size  # more than `size` while rows are held

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> PooledRow | None:
        found = self._rows.get(key)
        if found is not None:
            self._rows.move_to_end(key)
        return found

    def add(self, key: str, row: Any, stored: int | None) -> None:
        self._rows[key] = PooledRow(row, stored)
        self._rows.move_to_end(key)

    def drop(self, key: str) -> None:
        self._rows.pop(key, None)

    def clear(self) -> None:
        self._rows.clear()
        self._limit = self.size

    def changed(self, serializer: Serializer, leaving: list[str] | None = None) -> list[ChangedRow]:
        """The rows that differ from what is stored, of `leaving` or of all.

        A row that the serializer refuses is taken off `leaving`; without that its TypeError or ValueError
        is raised, with the row's key.
        """
        found = []
        for key in list(self._rows if leaving is None else leaving):
            pooled = self._rows[key]
            if pooled.stored is None:
                continue
            try:
                content = serializer.serialize(pooled.row)
            except (TypeError, ValueError) as exc:
                if leaving is None:
                    raise type(exc)(f"row {key!r} was changed and cannot be written: {exc}") from exc
                leaving.remove(key)  # it stays, until `flush` says what is wrong with it
                continue
            if checksum(content) != pooled.stored:
                found.append((key, pooled, content))
        return found

    @property
    def is_full(self) -> bool:
        return len(self._rows) > self._limit

    def leaving(self) -> list[str]:
        """The keys of the oldest rows that nobody holds, more than enough to make room."""
        excess = len(self._rows) - self.size
        oldest = list(islice(self._rows.items(), excess + self.size // 4))
        free = unheld([pooled for _, pooled in oldest])
        if not any(free) and len(oldest) < len(self._rows):
            # Rows may share parts with younger ones: with all of them in view, those are not strangers.
            oldest = list(self._rows.items())
            free = unheld([pooled for _, pooled in oldest])
        return [key for (key, _), is_free in zip(oldest, free, strict=True) if is_free]

    def settle(self) -> None:
        """After rows have left: those that could not leave are looked at again when there are more."""
        self._limit = max(self.size, len(self._rows) + len(self._rows) // 4)


def is_atom(row: Any) -> bool:
    """Whether the row can never change."""
    return type(row) in _ATOMS


def unheld(rows: list[PooledRow]) -> list[bool]:
    """For each row whether all references to it and to what it consists of come from `rows`.

    Rows that share a part are both held, unless both are in `rows`.
    """
    probe = PooledRow([], None)  # as free as can be: what it counts is what looking costs
    found: dict[int, int] = {}
    parts: list[Any] = []
    _walk([probe, *rows], found, parts)
    counts = _counts(parts)
    cost = counts[0] - found[id(probe.row)]
    held = {
        id(part)
        for part, count in zip(parts, counts, strict=True)
        if count - cost > found[id(part)] and _may_change(part)
    }
    del parts
    return [not held.intersection(_reached(pooled)) for pooled in rows]


def _counts(parts: list[Any]) -> list[int]:
    return [sys.getrefcount(part) for part in parts]


def _walk(rows: list[PooledRow], found: dict[int, int], parts: list[Any]) -> None:
    """Counts the references to every part of the rows, and lists each part once."""
    for pooled in rows:
        waiting = [pooled.row]
        while waiting:
            part = waiting.pop()
            if type(part) in _ATOMS or isinstance(part, _NOT_DATA):
                continue
            known = found.get(id(part), 0)
            found[id(part)] = known + 1
            if not known:
                parts.append(part)
                waiting.extend(gc.get_referents(part))


def _reached(pooled: PooledRow) -> dict[int, int]:
    found: dict[int, int] = {}
    _walk([pooled], found, [])
    return found


def _may_change(part: Any) -> bool:
    """Containers have no hash, instances that of `object`; what has one of its own is a value."""
    own: object = type(part).__hash__
    return own is None or own is object.__hash__
