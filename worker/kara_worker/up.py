"""`kara up`: a cluster on this machine until Ctrl-C, for trying things out."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kara_cache.errors import ConfigError, KaraError
from kara_cache.layered import keys
from kara_worker.config import WorkerConfig
from kara_worker.mount_settings import mounts_from_flags
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

EXIT_FAILED = 1
EXIT_CONFIG = 6  # as `kara` and `kara-worker`
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one: the terminal was closed
_EXAMPLES = """\
The line beginning with `export` is for other terminals: what they run then uses this cluster.
Without an etcd on this machine the workers are a static list.

examples:
  kara up --mount data=file:///datasets
  kara up --workers 3 --mount d=oss://endpoint/bucket --mount-option d.access_key_id=env:OSS_KEY_ID \\
          --mount-option d.access_key_secret=env:OSS_KEY_SECRET
"""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    done = threading.Event()
    for number in _SIGNALS:
        signal.signal(number, lambda *_: done.set())
    _forget_settings()
    try:
        _run(options, done)
    except ConfigError as exc:
        print(f"kara up: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    except (KaraError, RuntimeError, OSError) as exc:  # RuntimeError: a worker's last words
        print(f"kara up: {exc}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _run(options: argparse.Namespace, done: threading.Event) -> None:
    mounts = _mounts(options.mount, options.mount_option)
    with contextlib.ExitStack() as stack:
        etcd = None if options.no_etcd else _etcd(stack)
        cluster = LocalCluster(
            options.workers,
            mounts=mounts,
            etcd=etcd,
            directory=Path(options.directory).expanduser().absolute() if options.directory else None,
            capacity_bytes=options.capacity,
            peers=etcd is None,
        )
        stack.enter_context(cluster)
        if etcd is not None:
            members = f"KARA_ETCD_HOSTS={etcd.host}:{etcd.port}"
        else:
            members = f"KARA_WORKER_HOSTS={cluster.worker_hosts}"
        print(f"export {members} KARA_CLUSTER_NAME={cluster.cluster_name}")
        for worker in cluster.workers:
            print(f"# worker {worker.id} at {worker.address}, http://127.0.0.1:{worker.admin_port}/metrics")
        print("# Ctrl-C stops everything", flush=True)
        done.wait()
        with ThreadPoolExecutor(len(cluster.workers)) as threads:  # they drain at the same time
            list(threads.map(lambda worker: worker.stop(), cluster.workers))


def _forget_settings() -> None:
    """Settings of another cluster, such as the `export` line of the last `kara up`, are not for this one."""
    for key in (*keys(WorkerConfig), "config", "record"):
        os.environ.pop(f"KARA_{key.upper()}", None)


def _etcd(stack: contextlib.ExitStack) -> EtcdServer | None:
    try:
        server = EtcdServer()
    except ConfigError as exc:  # there is none
        if os.environ.get("KARA_ETCD"):
            raise
        print(f"# {exc}; a static list of workers instead", file=sys.stderr)
        return None
    return stack.enter_context(server)


def _mounts(mounts: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As tables of a configuration file."""
    return {
        mount.name: {"url": mount.url, "options": dict(mount.options)}
        for mount in mounts_from_flags(mounts, options)
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kara up",
        description="Start a cluster on this machine: etcd if present, and workers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=_count, default=3, metavar="N")
    parser.add_argument("--mount", action="append", default=[], metavar="NAME=URL", required=True)
    parser.add_argument("--mount-option", action="append", default=[], metavar="NAME.KEY=REF")
    parser.add_argument("--capacity", default="10GiB", metavar="SIZE", help="of each worker's page store")
    parser.add_argument("--directory", metavar="DIR", help="keep pages here; default: a temporary directory")
    parser.add_argument("--no-etcd", action="store_true", help="a static list of workers")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r}: want 1 .. 64")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
