"""Which rows are meant by what people put between brackets. Needs no numpy, and knows its arrays."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

_INT = frozenset({int})


def row_numbers(indices: Any, start: int, count: int) -> Sequence[int]:
    """Numbers in [start, start + count) for indices into these `count` rows; an array for an array.

    Raises IndexError for one that is out of range, TypeError for what is no sequence of ints.
    """
    if hasattr(indices, "dtype") and hasattr(indices, "ndim"):
        return _of_array(indices, start, count)
    if not isinstance(indices, (list, tuple, range)):
        if isinstance(indices, (str, bytes)):
            raise TypeError(f"Dataset index must be int, got {indices!r:.100}")
        try:
            indices = list(indices)
        except TypeError:
            raise TypeError(f"Dataset index must be int, got {type(indices).__name__}") from None
    if not indices:
        return ()
    if not isinstance(indices, range) and not _INT.issuperset(map(type, indices)):
        try:
            indices = [operator.index(index) for index in indices]
        except TypeError as exc:
            raise TypeError(f"Dataset index must be int: {exc}") from None
    lowest = _checked_range(min(indices), max(indices), count)
    if lowest < 0:
        return [index + start if index >= 0 else index + start + count for index in indices]
    found: Sequence[int] = [index + start for index in indices] if start else indices
    return found


def out_of_range(index: int, count: int) -> IndexError:
    return IndexError(f"Index `{index}` is out of range: there are {count} rows")


def _of_array(indices: Any, start: int, count: int) -> Sequence[int]:
    if indices.ndim != 1:
        raise TypeError(f"an array of indices has one dimension, not {indices.ndim}")
    if indices.dtype.kind == "b":
        if len(indices) != count:
            raise IndexError(f"an array of bool with {len(indices)} values for {count} rows")
        indices = indices.nonzero()[0]
    elif not len(indices):
        return ()
    if indices.dtype.kind not in "iu":
        raise TypeError(f"Dataset index must be int, got an array of {indices.dtype}")
    if not len(indices):
        return ()
    lowest = _checked_range(int(indices.min()), int(indices.max()), count)
    numbers: Any = indices.astype("int64")
    if lowest < 0:
        numbers[numbers < 0] += count
    if start:
        numbers += start
    found: Sequence[int] = numbers
    return found


def _checked_range(lowest: int, highest: int, count: int) -> int:
    for index in (lowest, highest):
        if not -count <= index < count:
            raise out_of_range(index, count)
    return lowest
