"""Memory for results: what was freed is used again, without a page fault for each 4 KiB of it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
