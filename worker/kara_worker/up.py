"""`kara up`: a cluster on this machine until Ctrl-C, for trying things out."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer

_EXAMPLES = """\
examples:
  kara up --mount data=file:///datasets
  kara up --workers 3 --mount d=oss://endpoint/bucket --mount-option d.access_key_id=env:OSS_KEY_ID \\
          --mount-option d.access_key_secret=env:OSS_KEY_SECRET
"""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    with contextlib.ExitStack() as stack:
        etcd = None if options.no_etcd else _etcd(stack)
        directory = Path(options.directory).expanduser() if options.directory else None
        cluster = LocalCluster(
            options.workers,
            mounts=_mounts(options.mount, options.mount_option),
            etcd=etcd,
            directory=directory,
            capacity_bytes=options.capacity,
        )
        stack.enter_context(cluster)
        if etcd is not None:
            print(f"export KARA_ETCD_HOSTS={etcd.host}:{etcd.port} KARA_CLUSTER_NAME={cluster.cluster_name}")
        else:
            print(f"export KARA_WORKER_HOSTS={cluster.worker_hosts} KARA_CLUSTER_NAME={cluster.cluster_name}")
        for worker in cluster.workers:
            print(f"# worker {worker.id} at {worker.address}, http://127.0.0.1:{worker.admin_port}/metrics")
        print("# Ctrl-C stops everything", flush=True)
        done.wait()
        for worker in cluster.workers:
            worker.stop()
    return 0


def _etcd(stack: contextlib.ExitStack) -> EtcdServer | None:
    try:
        return stack.enter_context(EtcdServer())
    except FileNotFoundError as exc:
        print(f"# {exc}; a static list of workers instead", file=sys.stderr)
        return None


def _mounts(mounts: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, object]]:
    table: dict[str, dict[str, object]] = {}
    for text in mounts:
        name, equals, url = text.partition("=")
        if not equals:
            raise SystemExit(f"kara up: --mount {text!r}: want NAME=URL")
        table[name] = {"url": url, "options": {}}
    for text in options:
        where, equals, value = text.partition("=")
        name, dot, key = where.partition(".")
        if not equals or not dot or name not in table:
            raise SystemExit(f"kara up: --mount-option {text!r}: want NAME.KEY=VALUE of a --mount")
        known = table[name]["options"]
        assert isinstance(known, dict)
        known[key] = value
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kara up",
        description="Start a cluster on this machine: etcd if present, and workers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workers", type=int, default=3, metavar="N")
    parser.add_argument("--mount", action="append", default=[], metavar="NAME=URL", required=True)
    parser.add_argument("--mount-option", action="append", default=[], metavar="NAME.KEY=REF")
    parser.add_argument("--capacity", default="10GiB", metavar="SIZE", help="of each worker's page store")
    parser.add_argument("--directory", metavar="DIR", help="keep pages here; default: a temporary directory")
    parser.add_argument("--no-etcd", action="store_true", help="a static list of workers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
