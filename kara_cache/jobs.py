"""Load jobs from Python: bring data into the cache before it is needed, and know that it is there.

    client = kara_cache.CacheClient(config)
    job = submit_load(client, "/data/train")
    job = wait_load(client, job.id)
    assert job.state is LoadState.SUCCEEDED, job.message

A job belongs to the cluster: any process may ask for it, by path or by id, and it goes on without the
one that submitted it. Errors are those of every call to the cache: `AccessDenied` without the right
to administer the path, `WorkerUnavailable` when no worker answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from kara_cache.cache_client import CacheClient
from kara_cache.errors import FormatError, WorkerUnavailable
from kara_cache.load_job import (
    LoadJob,
    LoadOptions,
    LoadProgress,
    LoadReceipt,
    LoadState,
    decode_job_document,
    job_document,
)

_POLL_FIRST_S, _POLL_MOST_S = 0.05, 0.5


def submit_load(client: CacheClient, path: str, options: LoadOptions | None = None) -> LoadJob:
    """Begins to load a file, or all below a directory; returns at once.

    Where a job for this path is running, that one is returned with its own options.
    Raises FileNotFoundError for an unknown mount; that the store has no such path is found by the job.
    """
    document = {"path": path, "options": _document(options or LoadOptions())}
    return _job(client.ask("POST", "/jobs", path, body=json.dumps(document).encode()))


def load_progress(client: CacheClient, path_or_id: str) -> LoadJob:
    """The job now. FileNotFoundError where there is none: jobs are forgotten a week after their end."""
    return _job(client.ask("GET", "/job", path_or_id, ("of", path_or_id)))


def stop_load(client: CacheClient, path_or_id: str) -> LoadJob:
    """Asks the job to end; it is STOPPED about a second later at most. What is loaded stays."""
    return _job(client.ask("DELETE", "/job", path_or_id, ("of", path_or_id)))


def list_loads(client: CacheClient) -> list[LoadJob]:
    """Jobs that run and jobs that ended in the last days, newest first."""
    documents = client.ask("GET", "/jobs", "/")
    if not isinstance(documents, list):
        raise WorkerUnavailable(f"list of load jobs: got {documents!r:.100}", reason="protocol")
    return [_job(document) for document in documents]


def load_receipt(client: CacheClient, path_or_id: str) -> LoadReceipt | None:
    """What came of the job: None while it runs, and of one that was stopped."""
    return load_progress(client, path_or_id).receipt


def wait_load(
    client: CacheClient,
    path_or_id: str,
    *,
    timeout_s: float | None = None,
    on_progress: Callable[[LoadJob], None] | None = None,
) -> LoadJob:
    """The job when it is over. TimeoutError after `timeout_s`; the job goes on.

    A cluster that does not answer for a while is asked again, until the call's own timeout is over.
    """
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _POLL_FIRST_S
    while True:
        job = load_progress(client, path_or_id)
        if on_progress is not None:
            on_progress(job)
        if job.state.final:
            return job
        if ends is not None and time.monotonic() + pause_s > ends:
            raise TimeoutError(f"load job of {job.path} is {job.state.value} after {timeout_s:g} s")
        time.sleep(pause_s)
        pause_s = min(_POLL_MOST_S, pause_s * 1.5)


def free(client: CacheClient, path: str, *, recursive: bool = False) -> tuple[int, int]:
    """Drops cached pages, `CacheClient.free`: (pages, bytes). The store keeps everything."""
    return client.free(path, recursive=recursive)


def _document(options: LoadOptions) -> dict[str, object]:
    return {name: getattr(options, name) for name in LoadOptions.__dataclass_fields__}


def _job(document: object) -> LoadJob:
    try:
        return decode_job_document(document)
    except FormatError as exc:
        raise WorkerUnavailable(str(exc), reason="protocol") from exc


__all__ = [
    "LoadJob",
    "LoadOptions",
    "LoadProgress",
    "LoadReceipt",
    "LoadState",
    "free",
    "job_document",
    "list_loads",
    "load_progress",
    "load_receipt",
    "stop_load",
    "submit_load",
    "wait_load",
]
