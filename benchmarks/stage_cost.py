"""What it costs to know where the time of a read went: `python -m benchmarks.stage_cost`.

The same 4 KiB are read from a worker over TCP with the stages of `kara_cache.read_stages` and without, in
turns in one process; what counts is the CPU time of this process. A worker adds nothing to a plain hit.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from kara_cache.cache_client import CacheClient
from kara_cache.cached_file import CachedFile
from kara_cache.config import ClientConfig
from kara_cache.errors import PageCorrupt
from kara_cache.reading import file_reads
from kara_cache.reading.file_reads import FileReads
from kara_cache.transport.verified_body import receive_verified
from kara_cache.transport.worker_client import WorkerClient
from kara_worker.testing.cluster import LocalCluster

_LENGTH = 4096
_PLACES = 256
_READS = 1000  # of one variant in one turn
_ROUNDS = 41
_AT_MOST = 0.02


def without_stages(
    client: WorkerClient,
    file: CachedFile,
    start: int,
    view: memoryview,
    *,
    keep: bool,
    deadline: float,
    marks: Any,
) -> bool:
    """`WorkerClient.read_into` as it would be if nobody asked where the time went."""
    link = client.link
    prefix = file.reading if keep else file.read_through
    connection = link.send(b"%b%d&length=%d%b" % (prefix, start, len(view), link.tail()), deadline)
    if connection.head.status != 200:
        link.document(connection, file.path)
    try:
        receive_verified(connection, file.path, start, view)
    except BaseException:
        link.discard(connection)
        raise
    link.release(connection)
    return connection.head.length is not None


class _NoMarks:
    """In the place of `Marks`, so that making one for each read is counted."""


_NO_MARKS = _NoMarks()


def ask_without_stages(reads: FileReads, worker: WorkerClient, part: Any, *, keep: bool) -> None:
    """`FileReads._ask` without what only stages need."""
    file, view = part.file, part.view
    if keep and worker.link.is_local:
        raise AssertionError("this client does not read locally")
    start = part.start + part.held
    if part.held:
        view = view[part.held :]
    try:
        hit = worker.read_into(file, start, view, keep=keep, deadline=part.deadline, marks=_NO_MARKS)  # type: ignore[arg-type]
    except PageCorrupt:
        reads._report(worker, file, start, len(view))
        raise
    seconds = monotonic() - part.began
    reads._metrics.worker_read(len(part.view), part.held, seconds, hit=hit)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kara-stages-") as home:
        files = Path(home) / "files"
        files.mkdir()
        (files / "data").write_bytes(os.urandom(_PLACES * _LENGTH))
        mounts = {"m": {"url": f"file://{files}", "freshness": "immutable"}}
        with LocalCluster(1, mounts=mounts, directory=Path(home) / "cluster") as cluster:
            options = {**cluster.client_options, "local_reads": False}
            with CacheClient(ClientConfig.load(env={}, **options)) as client:
                ratios, with_us, without_us = _compare(client)
    cost = statistics.median(ratios) - 1
    print(f"with stages    {with_us:7.2f} us of CPU a read of 4 KiB (median of {_ROUNDS} rounds)")
    print(f"without        {without_us:7.2f} us")
    print(f"stages cost    {cost:+7.2%} (median of the rounds' ratios; target: at most {_AT_MOST:.0%})")
    return 0 if cost <= _AT_MOST else 1


def _compare(client: CacheClient) -> tuple[list[float], float, float]:
    info = client.info("/m/data")
    view = memoryview(bytearray(_LENGTH))
    while client.metrics.worker_reads.get("hit", 0) < 2:
        client.read_into(info, 0, view)
    usual, marks = (WorkerClient.read_into, FileReads._ask), file_reads.Marks

    def turn() -> float:
        began = process_time()
        for number in range(_READS):
            client.read_into(info, number % _PLACES * _LENGTH, view)
        return (process_time() - began) * 1e6 / _READS

    def bare() -> float:
        WorkerClient.read_into, FileReads._ask = without_stages, ask_without_stages  # type: ignore[assignment,method-assign]
        file_reads.Marks = lambda: _NO_MARKS  # type: ignore[assignment,misc]
        try:
            return turn()
        finally:
            WorkerClient.read_into, FileReads._ask = usual  # type: ignore[method-assign]
            file_reads.Marks = marks  # type: ignore[misc]

    variants: list[tuple[str, Callable[[], float]]] = [("with", turn), ("without", bare)]
    found: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(_ROUNDS):
        for name, run in variants if number % 2 else variants[::-1]:
            found[name].append(run())
    ratios = [one / other for one, other in zip(found["with"], found["without"], strict=True)]
    return ratios, statistics.median(found["with"]), statistics.median(found["without"])


if __name__ == "__main__":
    sys.exit(main())
