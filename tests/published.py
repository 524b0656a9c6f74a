"""Published packages in environments of their own, so that what they pin touches nothing of ours."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / ".venv-published"
_INSTALL_S = 900


def python_with(*requirements: str, extra_arguments: tuple[str, ...] = ()) -> Path:
    """The interpreter of a virtual environment that has exactly `requirements`; made once, kept between runs.

    Skips the test where they cannot be installed, and fails it under CI.
    """
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
                if os.environ.get("CI"):
                    pytest.fail(f"{requirements}: cannot be installed: {said}")
                pytest.skip(f"{requirements}: cannot be installed here")
            (home / "complete").touch()
    return home / "bin" / "python"


def _make(home: Path, *arguments: str) -> None:
    pip = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for command in ([sys.executable, "-m", "venv", home], [*pip, *arguments]):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
