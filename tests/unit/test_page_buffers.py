"""Memory for results: what was freed is used again, without a page fault for each 4 KiB of it."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import tracemalloc

import pytest

from kara_cache.page_buffers import filled_bytes

# A process of its own, because what its allocator has seen decides.
FAULTS = """
import resource, sys
from kara_cache.page_buffers import fresh_memory
size, source = int(sys.argv[1]), bytes(int(sys.argv[1]))

def result():
    memory = fresh_memory(size)
    memory[:] = source
    return bytes(memory)

for _ in range(3):
    result()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    result()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how glibc gives memory back")
@pytest.mark.parametrize("size", [256 << 10, 1 << 20, 8 << 20])
def test_results_and_their_copies_use_memory_that_was_freed(size: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(size)], check=True, timeout=60, capture_output=True, text=True
    )
    assert float(done.stdout) < size / 4096 / 10


@pytest.mark.parametrize("count", [0, 1, 2, 5000, 3 << 20])
def test_filled_bytes_are_what_was_written(count: int) -> None:
    source = os.urandom(count)

    def fill(view: memoryview) -> None:
        assert len(view) == count
        view[:] = source

    first = filled_bytes(count, fill)
    assert type(first) is bytes
    assert (first, filled_bytes(count, fill)) == (source, source)
    assert filled_bytes(count, lambda view: None) == bytes(count)


def test_what_fill_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        filled_bytes(100, lambda view: 1 // 0)


@pytest.mark.skipif(
    platform.python_implementation() != "CPython" or sys.version_info[:2] == (3, 12),
    reason="how CPython's BytesIO keeps memory; that of 3.12 cannot be used",
)
def test_a_result_is_in_memory_once() -> None:
    source = memoryview(bytes(4 << 20))
    tracemalloc.start()
    try:
        assert len(filled_bytes(4 << 20, lambda view: view.__setitem__(slice(None), source))) == 4 << 20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_a_view_that_somebody_keeps_is_not_of_the_result() -> None:
    kept: list[memoryview] = []
    result = filled_bytes(100, lambda view: kept.append(view[10:]))
    kept[0][:] = b"x" * 90
    assert result == bytes(100)


def test_an_error_that_is_collected_with_its_views_says_nothing() -> None:
    """Warnings of the collector are errors of the test in which it runs."""

    class Failure(Exception):
        views: list[memoryview]

    def fill(view: memoryview) -> None:
        failure = Failure()
        failure.views = [view[10:]]
        raise failure

    try:
        filled_bytes(100, fill)
    except Failure as failure:
        failure.args = (failure,)  # a cycle: only the collector ends it
    gc.collect()


COLLECTED = """
import gc

from kara_cache.page_buffers import filled_bytes


def fill(view):
    part = view[2:]
    raise ValueError(part)


def fail():
    try:
        filled_bytes(100, fill)
    except ValueError as error:
        kept = error  # a cycle, with the views in its traceback


for _ in range(100):
    fail()
gc.collect()
"""


def test_an_error_that_is_collected_with_its_views_does_not_end_the_process() -> None:
    """CPython gh-111049, in 3.12.1: SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", COLLECTED], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
