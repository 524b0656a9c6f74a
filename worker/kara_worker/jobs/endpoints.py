"""Load jobs on the data port: docs/protocol.md, "Load jobs"."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

from kara_cache.errors import WorkerBusy
from kara_cache.load_job import LoadJob, LoadOptions, decode_options, is_job_id, job_document
from kara_cache.mount import normalize_path
from kara_worker.access import AccessControl
from kara_worker.http.request import Request
from kara_worker.jobs.batch import MAX_BATCH_BYTES, Outcome, decode_batch, encode_outcome
from kara_worker.jobs.job_board import JobBoard
from kara_worker.jobs.owner import LoadOwner

_SUBMISSION_BYTES = 64 << 10

Handler = Callable[[Request], Awaitable[None]]


class JobEndpoints:
    """Event loop only."""

    def __init__(self, board: JobBoard, owner: LoadOwner, access: AccessControl, executor: Executor) -> None:
        self._board = board
        self._owner = owner
        self._access = access
        self._executor = executor

    def routes(self) -> dict[tuple[str, str], tuple[str, Handler]]:
        """For `PageServer`: method and path to the name in metrics and the handler."""
        return {
            ("POST", "/jobs"): ("submit_load", self._submit),
            ("GET", "/jobs"): ("list_loads", self._list),
            ("GET", "/job"): ("load_progress", self._find),
            ("DELETE", "/job"): ("stop_load", self._stop),
            ("POST", "/load"): ("load", self._load),
            ("DELETE", "/load"): ("end_load", self._end),
        }

    async def _submit(self, request: Request) -> None:
        document = json.loads(await request.body_bytes(_SUBMISSION_BYTES))
        if not isinstance(document, dict) or not isinstance(document.get("path"), str):
            raise ValueError('expected {"path": text, "options": object}')
        path = normalize_path(document["path"])
        self._access.check(request, "admin", path)
        options = decode_options(document["options"]) if document.get("options") else LoadOptions()
        await request.respond_json(job_document(await self._board.submit(path, options)))

    async def _list(self, request: Request) -> None:
        claims = self._access.identify(request)
        if request.query.get("here") == "1":
            jobs = await self._in_thread(self._board.list_here)
        else:
            jobs = await self._board.list()
        visible = [job for job in jobs if claims is None or claims.allows("read", job.path)]
        await request.respond_json([job_document(job) for job in visible])

    async def _find(self, request: Request) -> None:
        path_or_id = _named(request)
        if request.query.get("here") == "1":
            job = await self._in_thread(self._board.find_here, path_or_id)
        else:
            job = await self._board.find(path_or_id)
        await self._respond(request, path_or_id, job, "read")

    async def _stop(self, request: Request) -> None:
        path_or_id = _named(request)
        here = request.query.get("here") == "1"
        if not path_or_id.startswith("/"):  # what an id stands for decides who may stop it
            known = await (
                self._in_thread(self._board.find_here, path_or_id) if here else self._board.find(path_or_id)
            )
            if known is not None:
                self._access.check(request, "admin", known.path)
        else:
            self._access.check(request, "admin", path_or_id)
        if here:
            job = await self._in_thread(self._board.stop_here, path_or_id)
        else:
            job = await self._board.stop(path_or_id)
        await self._respond(request, path_or_id, job, "admin")

    async def _respond(self, request: Request, path_or_id: str, job: LoadJob | None, verb: Any) -> None:
        """Whoever may not know of a job learns no more than that there is a rule."""
        claims = self._access.identify(request)
        if job is None:
            if claims is not None and path_or_id.startswith("/"):
                claims.require(verb, path_or_id)
            raise FileNotFoundError(f"no load job {path_or_id}")
        if claims is not None:
            claims.require(verb, job.path)
        await request.respond_json(job_document(job))

    async def _load(self, request: Request) -> None:
        """From a coordinator. Signs of life go out while stores are slow, or slowed on purpose."""
        self._access.check(request, "admin", "/")
        batch = decode_batch(await request.body_bytes(MAX_BATCH_BYTES))
        task = await request.alive_during(self._owner.run(batch))
        await request.respond(200, encode_outcome(_outcome(task)), content_type="application/json")

    async def _end(self, request: Request) -> None:
        self._access.check(request, "admin", "/")
        self._owner.end(request.query.get("job", ""))
        await request.respond_json({})

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)


def _outcome(task: asyncio.Task[Outcome]) -> Outcome:
    if task.cancelled():
        raise WorkerBusy("the load job was ended")
    return task.result()


def _named(request: Request) -> str:
    text = request.query.get("of", "")
    return text if is_job_id(text) else normalize_path(text)
