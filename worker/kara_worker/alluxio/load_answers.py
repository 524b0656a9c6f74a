"""`/v1/load`: load jobs in the words of Alluxio clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from kara_cache.load_job import LoadJob, LoadOptions, LoadState
from kara_cache.quantity import parse_bytes
from kara_worker.jobs.board import LoadBoard

_HOLD_S = 8.0  # client.load() sleeps 10 s after every answer that is not final: later and final is sooner
_POLL_S = 0.1
_TRUE = ("true", "1")


class LoadAnswers:
    """Event loop only. Any worker answers for any path."""

    def __init__(self, board: LoadBoard | None, *, hold_s: float = _HOLD_S) -> None:
        self._board = board
        self._hold_s = hold_s

    async def answer(self, path: str, url: str, arguments: Mapping[str, str]) -> dict[str, Any]:
        """Raises ValueError for an operation or option that is none, and what the board raises."""
        operation = arguments.get("opType", "submit").lower()
        if self._board is None:
            return _outcome(False, "", url, "this worker takes no load jobs")
        if operation == "submit":
            job = await self._board.submit(path, load_options(arguments))
            return _outcome(True, job.id, url, "submitted")
        if operation == "stop":
            stopped = await self._board.stop(path)
            if stopped is None:
                return _outcome(False, "", url, f"no load job for {url}")
            return _outcome(True, stopped.id, url, "stopping")
        if operation == "progress":
            return _progress(await self._settled(self._board, path), url)
        raise ValueError(f"opType {operation!r}: want submit, progress or stop")

    async def _settled(self, board: LoadBoard, path: str) -> LoadJob | None:
        """The job, after a wait for its end that is shorter than the client's next sleep."""
        until = time.monotonic() + self._hold_s
        while True:
            job = await board.find(path)
            if job is None or job.state.final or time.monotonic() >= until:
                return job
            await asyncio.sleep(_POLL_S)


def load_options(arguments: Mapping[str, str]) -> LoadOptions:
    """What Alluxio's arguments of a load mean here; those that are not given keep our defaults."""
    options: dict[str, Any] = {}
    for key, name in (
        ("partialListing", "partial_listing"),
        ("verify", "verify"),
        ("loadMetadataOnly", "metadata_only"),
        ("skipIfExists", "skip_if_cached"),
    ):
        if key in arguments:
            options[name] = arguments[key].lower() in _TRUE
    if arguments.get("replicas"):
        options["replicas"] = int(arguments["replicas"])
    if arguments.get("bandwidth"):
        options["bandwidth_bytes_per_s"] = parse_bytes(arguments["bandwidth"])
    if arguments.get("fileFilterRegx"):
        options["file_filter"] = arguments["fileFilterRegx"]
    return LoadOptions(**options)


def _outcome(success: bool, job_id: str, url: str, message: str) -> dict[str, Any]:
    return {"success": success, "jobId": job_id, "path": url, "message": message}


def _progress(job: LoadJob | None, url: str) -> dict[str, Any]:
    if job is None:
        message = f"Load job for path {url} cannot be found."
        return {"jobState": "FAILED", "path": url, "message": message, "respProperties": {}}
    state = LoadState.RUNNING if job.state is LoadState.QUEUED else job.state
    progress = job.progress
    message = (
        f"{progress.files} of {progress.files_listed} files, {progress.bytes} of "
        f"{progress.bytes_listed} bytes, {progress.pages_failed} pages failed"
    )
    if job.message:
        message = f"{message}; {job.message}"
    properties = {
        "jobId": job.id,
        "files": str(progress.files),
        "bytes": str(progress.bytes),
        "bytesFetched": str(progress.bytes_fetched),
        "pagesFailed": str(progress.pages_failed),
    }
    return {"jobState": state.value, "path": url, "message": message, "respProperties": properties}
