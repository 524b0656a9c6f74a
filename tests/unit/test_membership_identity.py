from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kara_cache.errors import ConfigError
from kara_worker.identity import DirectoryLock, load_or_create_identity


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    made = load_or_create_identity(tmp_path)
    assert len(made) == 32
    assert int(made, 16)
    assert load_or_create_identity(tmp_path) == made
    assert os.listdir(tmp_path) == ["IDENTITY"]


def test_two_directories_have_two(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    other.mkdir()
    assert load_or_create_identity(one) != load_or_create_identity(other)


@pytest.mark.parametrize(
    "damage",
    [b"", b"\n", b"0" * 31, b"0" * 33, b"G" * 32, b"A" * 32, b"\xff" * 32, b"0" * 16 + b"\n" + b"0" * 16],
)
def test_damage_is_refused_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    """A new identity in its place would move the worker's share and orphan its pages."""
    path = tmp_path / "IDENTITY"
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match="IDENTITY is damaged"):
        load_or_create_identity(tmp_path)
    assert path.read_bytes() == damage


def test_a_directory_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        DirectoryLock(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be"):
        load_or_create_identity(tmp_path / "missing")


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path / "pages")
    with pytest.raises(ConfigError, match=f"is in use by pid {os.getpid()}"):
        DirectoryLock(tmp_path / "pages")
    first.close()
    DirectoryLock(tmp_path / "pages").close()


HOLD = """
import sys
from kara_worker.identity import DirectoryLock
lock = DirectoryLock(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_the_kernel_frees_the_directory_of_a_killed_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(ConfigError, match=f"in use by pid {holder.pid}"):
                DirectoryLock(tmp_path)
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    DirectoryLock(tmp_path).close()


def test_a_fingerprint_tells_a_directory_from_its_copy(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "a") as lock:
        before = lock.fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with DirectoryLock(tmp_path / "a") as again, DirectoryLock(tmp_path / "b") as copy:
        assert again.fingerprint == before
        assert copy.fingerprint != before
