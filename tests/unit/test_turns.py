"""What a worker asks the kernel for, as the kernel tells it; in children, since it is for their life."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kara_worker.turns import LONG_S, SHORT_S

AUTOGROUP = Path("/proc/self/autogroup")
SLICE = """
import ctypes, platform, struct
from kara_worker.turns import take_turns_of
take_turns_of({seconds})
layout = struct.Struct("=IIQiIQQQ")
told = ctypes.create_string_buffer(layout.size)
number = {{"x86_64": 315, "aarch64": 275}}[platform.machine()]  # sched_getattr
assert not ctypes.CDLL(None).syscall(number, 0, told, layout.size, 0)
print(layout.unpack(told.raw)[5], layout.unpack(told.raw)[3])
"""


def output(program: str, **options: bool) -> list[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60, **options
    ).stdout.split()


def release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux")
@pytest.mark.parametrize("seconds", [SHORT_S, LONG_S])
def test_turns_are_as_long_as_asked_for_and_niceness_stays(seconds: float) -> None:
    if release() < (6, 12):
        pytest.skip("turns of one's own came with Linux 6.12")
    assert output(SLICE.format(seconds=seconds)) == [str(int(seconds * 1e9)), str(os.nice(0))]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="no autogroup")
def test_a_session_gives_way_as_a_whole() -> None:
    program = (
        "import os; from kara_worker.turns import give_way; give_way(10)\n"
        "told = open('/proc/self/autogroup').read()\n"
        "if not told.endswith('nice 5\\n'): open('/proc/self/autogroup', 'w').write('5')\n"
        "print(os.nice(0), told)"
    )
    try:
        told = output(program, start_new_session=True)
    except subprocess.CalledProcessError as exc:
        if "OSError" in exc.stderr or "PermissionError" in exc.stderr or "BlockingIOError" in exc.stderr:
            pytest.skip("the kernel lets nobody set it here, or not so often")
        raise
    assert told[0] == str(min(19, os.nice(0) + 10))
    assert told[-2:] == ["nice", "5"]


def test_where_the_kernel_knows_nothing_of_it_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from kara_worker import turns

    monkeypatch.setattr(turns.platform, "machine", lambda: "sparc")
    turns.take_turns_of(SHORT_S)
