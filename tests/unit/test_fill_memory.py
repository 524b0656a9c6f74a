"""Memory for fills: what somebody looks at is nobody else's, and what nobody looks at is used again."""

from __future__ import annotations

import ctypes

from hypothesis import given
from hypothesis import strategies as st

from kara_worker.fill_memory import FillMemory

MIB = 1 << 20


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_memory_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    memory = FillMemory(4 * MIB)
    first = memory.take(MIB)
    where = address(first)
    part = first[100:200]
    del first
    assert address(memory.take(MIB)) != where, "a part of it is still looked at"
    del part
    assert where in {address(one) for one in [memory.take(MIB), memory.take(MIB)]}


def test_what_is_kept_is_bounded() -> None:
    memory = FillMemory(4 * MIB)
    taken = [memory.take(3 * MIB) for _ in range(3)]
    taken.clear()
    assert repr(memory) == f"<FillMemory {3 * MIB} bytes free>"
    memory.take(2 * MIB)  # another size: there is no room to keep it
    assert repr(memory) == f"<FillMemory {3 * MIB} bytes free>"


def test_small_fills_take_from_the_heap() -> None:
    memory = FillMemory(4 * MIB)
    assert len(memory.take(1000)) == 1000
    assert repr(memory) == "<FillMemory 0 bytes free>"


@given(st.lists(st.tuples(st.integers(1, 3 * MIB), st.integers(0, 7)), max_size=24))
def test_nobody_gets_memory_that_another_one_looks_at(steps: list[tuple[int, int]]) -> None:
    memory = FillMemory(8 * MIB)
    held: dict[int, memoryview] = {}
    for number, (size, place) in enumerate(steps):
        held.pop(place, None)
        view = held[place] = memory.take(size)
        assert len(view) == size
        mark = bytes([number + 1])
        view[:1], view[-1:] = mark, mark
        marks = {bytes(one[:1]) for one in held.values()} | {bytes(one[-1:]) for one in held.values()}
        assert len(marks) == len(held)
