"""What people call rows by, keys, positions, slices and lists of them, as numbers of stored rows."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from kara_cache.storage.kv.stored_rows import StoredRows

Where = int | str | slice | Iterable[int | str]


def number_of_key(stored: StoredRows, key: str) -> int:
    """Raises KeyError."""
    number = stored.find(key)
    if number is None:
        raise KeyError(key)
    return number


def number_at(stored: StoredRows, position: Any) -> int:
    """Negative positions count from the end. Raises IndexError, TypeError."""
    count, wanted = len(stored), operator.index(position)
    if not -count <= wanted < count:
        raise IndexError(f"row {wanted} of {count}")
    return stored.order.at(wanted + count if wanted < 0 else wanted)


def numbers_of(stored: StoredRows, where: Where) -> list[int]:
    """Each row once, in the order in which they were named. Raises KeyError, IndexError, TypeError."""
    if isinstance(where, str):
        return [number_of_key(stored, where)]
    if isinstance(where, slice):
        return [stored.order.at(position) for position in range(len(stored))[where]]
    if is_position(where):
        return [number_at(stored, where)]
    if not isinstance(where, Iterable):
        raise TypeError(f"rows are named by int, str, slice or a list, got {type(where).__name__}")
    return list(dict.fromkeys(number for one in where for number in numbers_of(stored, one)))


def is_position(where: Any) -> bool:
    """Arrays have `__index__`, too; only those without dimensions can use it."""
    return hasattr(where, "__index__") and not getattr(where, "ndim", 0)


def insertion_at(position: int, count: int) -> int:
    """As in `list.insert`: cut to 0 .. count."""
    wanted = operator.index(position)
    return max(0, wanted + count) if wanted < 0 else min(wanted, count)
