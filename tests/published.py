"""Published packages in environments of their own, so that what they pin touches nothing of ours.

Benchmarks take them from here as well, so pytest is imported only where a test is skipped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / ".venv-published"
_INSTALL_S = 900


def python_with(*requirements: str, extra_arguments: tuple[str, ...] = ()) -> Path:
    """As `environment`; skips the test where it cannot be installed, and fails it under CI."""
    try:
        return environment(*requirements, extra_arguments=extra_arguments)
    except InstallError as exc:
        import pytest

        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(f"{requirements}: cannot be installed here")


class InstallError(RuntimeError):
    """Says what pip said."""


def environment(*requirements: str, extra_arguments: tuple[str, ...] = ()) -> Path:
    """The interpreter of a virtual environment with exactly `requirements`, made once and kept."""
    wanted = "\n".join([sys.version, *requirements, *extra_arguments])
    home = ROOT / f"{requirements[0].partition('=')[0]}-{blake2b(wanted.encode(), digest_size=6).hexdigest()}"
    ROOT.mkdir(exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            try:
                _make(home, *requirements, *extra_arguments)
            except subprocess.SubprocessError as exc:
                said = getattr(exc, "stderr", None) or str(exc)
                raise InstallError(f"{requirements}: cannot be installed: {said}") from exc
            (home / "complete").touch()
    return home / "bin" / "python"


def _make(home: Path, *arguments: str) -> None:
    pip = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for command in ([sys.executable, "-m", "venv", home], [*pip, *arguments]):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
