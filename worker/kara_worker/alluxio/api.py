"""`/v1/*` as published `alluxiofs` clients call it, over this worker's cache and stores.

Clients name files by their full URL in the store; the mount table says which of them exist here. Any
worker answers for any path: what another one keeps is read from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from kara_cache.token import Verb
from kara_cache.ufs.base import FileInfo
from kara_worker.access import AccessControl
from kara_worker.alluxio.api_errors import message_of, status_of
from kara_worker.alluxio.deadline import answered_within
from kara_worker.alluxio.file_bytes import Answer, FileBytes
from kara_worker.alluxio.file_status import file_status
from kara_worker.alluxio.load_answers import LoadAnswers
from kara_worker.alluxio.owners import Owners
from kara_worker.alluxio.raw_query import form_values, spellings, split_path, split_two_paths
from kara_worker.alluxio.store_changes import StoreChanges
from kara_worker.alluxio.ufs_names import UfsNames, quoted_path
from kara_worker.data_port.upload import upload
from kara_worker.file_facts import FileFacts
from kara_worker.http.request import Request
from kara_worker.http.server import Connection
from kara_worker.metrics import WorkerMetrics
from kara_worker.mounted_stores import MountedStores
from kara_worker.page_cache import PageCache

log = logging.getLogger(__name__)

V = TypeVar("V")
LIST_FORM, DICT_FORM = 0, 1  # of `/v1/node`, and the listener's index in `WorkerInfo.alluxio_ports`
_DEFAULT_SAMPLE_BYTES = 1024  # of head and tail
_LIST_BATCH = 256
_RM_FLAGS = (
    "recursive", "recursiveAlias", "sync_parent_next_time", "remove_unchecked_option",
    "remove_alluxio_only", "delete_mount_point",
)  # fmt: skip
_CP_FLAGS = ("recursive", "recursiveAlias", "forced", "preserve", "thread", "buffer_size")


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the listeners of one worker share."""

    cache: PageCache
    stores: MountedStores
    facts: FileFacts
    files: FileBytes
    names: UfsNames
    owners: Owners
    loads: LoadAnswers
    metrics: WorkerMetrics
    executor: Executor  # for calls to stores
    changes: Executor  # for what may take long: removing and copying trees, joining parts
    deadline_s: float  # to the first byte of an answer


class AlluxioApi:
    """Implements `Application`. Event loop only."""

    def __init__(self, parts: ApiParts, access: AccessControl, *, form: int, writes: bool) -> None:
        """`form` is that of `/v1/node`; without `writes`, changes of a store are refused."""
        self._parts = parts
        self._access = access
        self._form = form
        self._writes = writes
        self._changes = StoreChanges(parts.stores)
        self.draining = False
        plain: dict[tuple[str, str], Callable[[Request], Coroutine[Any, Any, None]]] = {
            ("GET", "node"): self._node,
            ("GET", "files"): self._files,
            ("GET", "info"): self._info,
            ("GET", "load"): self._load,
            ("GET", "ufsInfo"): self._ufs_info,
        }
        with_id: dict[tuple[str, str], Callable[[Request, str], Coroutine[Any, Any, None]]] = {
            ("GET", "range"): self._range,
            ("GET", "chunk"): self._whole,
            ("POST", "chunk"): self._write,
            ("GET", "file"): self._page,
            ("POST", "file"): self._write_page,
            ("GET", "head"): self._head,
            ("GET", "tail"): self._tail,
            ("POST", "mkdir"): self._mkdir,
            ("POST", "touch"): self._touch,
            ("POST", "mv"): self._mv,
            ("POST", "rm"): self._rm,
            ("POST", "copy"): self._copy,
        }
        self._plain, self._with_id = plain, with_id

    def try_fast(self, connection: Connection, head: bytes) -> bool:
        return False

    async def handle(self, request: Request) -> None:
        began = time.monotonic()
        version, _, rest = request.path.lstrip("/").partition("/")
        verb, _, identity = rest.partition("/")
        key = (request.method, verb)
        if version != "v1" or (key not in self._plain and key not in self._with_id):
            message = f"no such endpoint: {request.method} {request.path[:200]}"
            await request.respond_json({"message": message}, 404)
            return
        if self.draining:
            await request.respond_json({"message": "this worker is draining: ask another one"}, 503)
            return
        plain = self._plain.get(key)
        result = "error"
        try:
            work = plain(request) if plain is not None else self._with_id[key](request, identity)
            status = await self._answer(request, work)
            result = "ok" if status < 400 else "client_error" if status not in (412, 503) else "error"
        finally:
            self._parts.metrics.observe(f"v1_{verb.lower()}", result, time.monotonic() - began)

    async def _answer(self, request: Request, work: Coroutine[Any, Any, None]) -> int:
        """The status that the client got."""
        try:
            if request.method == "POST":
                await work  # a long upload is no silence: the connection bounds how long its peer may pause
            else:
                await answered_within(self._parts.deadline_s, request, work)
        except ConnectionError:
            raise
        except Exception as exc:  # a request's top: what is foreseen has a status of its own
            if request.started:
                raise
            status = status_of(exc)
            if status == 503:
                log.warning(
                    "%s %s: %s", request.method, request.path, exc, exc_info=not isinstance(exc, OSError)
                )
            await request.respond_json({"message": message_of(exc)}, status)
            return status
        return 200

    async def _in_thread(self, work: Callable[..., V], *args: Any) -> V:
        return await asyncio.get_running_loop().run_in_executor(self._parts.executor, work, *args)

    async def _change(self, work: Callable[..., V], *args: Any) -> V:
        return await asyncio.get_running_loop().run_in_executor(self._parts.changes, work, *args)

    # -- where and what -----------------------------------------------------------------------------

    async def _node(self, request: Request) -> None:
        self._access.identify(request)
        raw, _ = split_path(request.raw_query, "path", ())
        if raw is None:
            raise ValueError("/v1/node: argument 'path' is missing")
        path = self._parts.names.kara_path(next(spellings(raw)))
        worker = await self._parts.owners.owner(path, self._form)
        address = {"Host": worker.host, "HttpServerPort": worker.alluxio_ports[self._form]}
        if self._form == DICT_FORM:
            await request.respond_json(address)
            return
        locations = {"mLocations": [{"mWorkerAddress": address}]}
        await request.respond_json([{"mBlockInfo": {"mBlockInfo": locations}}])

    async def _info(self, request: Request) -> None:
        url, path = self._named(request, "read")
        info = await self._parts.facts.info(path)
        self._parts.names.remember(url)
        await request.respond_json([self._status(info)])

    async def _files(self, request: Request) -> None:
        _, path = self._named(request, "read")
        entries = self._parts.stores.list(path, recursive=False)

        def take() -> list[FileInfo]:
            return [info for _, info in zip(range(_LIST_BATCH), entries, strict=False)]

        batch = await self._in_thread(take)  # a missing directory raises before the head is out
        await request.start(length=None, headers=["Content-Type: application/json"])
        await request.write_chunk(b"[")
        separator = b""
        while batch:
            rows = [json.dumps(self._status(info)).encode() for info in batch]
            await request.write_chunk(separator + b",".join(rows))
            separator = b","
            batch = await self._in_thread(take)
        await request.write_chunk(b"]")
        await request.finish()

    def _status(self, info: FileInfo) -> dict[str, Any]:
        names = self._parts.names
        url = names.url(info.path)
        names.remember(url)
        alluxio_path = quoted_path(info.path) if self._form == DICT_FORM else info.path
        return file_status(info, url=url, alluxio_path=alluxio_path)

    def _named(self, request: Request, verb: Verb) -> tuple[str, str]:
        """URL and kara path of a request whose path is properly encoded."""
        url = form_values(request.raw_query).get("path")
        if url is None:
            raise ValueError(f"{request.path}: argument 'path' is missing")
        return url, self._allowed(request, verb, url)

    def _allowed(self, request: Request, verb: Verb, url: str) -> str:
        path = self._parts.names.kara_path(url)
        self._access.check(request, verb, path)
        if verb == "write" and not self._writes:
            raise PermissionError("this listener is anonymous and takes no writes: alluxio_anonymous_writes")
        return path

    async def _load(self, request: Request) -> None:
        url, path = self._named(request, "read")
        await request.respond_json(await self._parts.loads.answer(path, url, form_values(request.raw_query)))

    async def _ufs_info(self, request: Request) -> None:
        """Where each store is, and nothing that opens it."""
        self._access.identify(request)
        names = self._parts.names
        document = {
            names.url(f"/{mount.name}"): {"alluxio_path": f"/{mount.name}"}
            for mount in self._parts.stores.mounts
        }
        await request.respond_json(document)

    # -- content ------------------------------------------------------------------------------------

    async def _range(self, request: Request, identity: str) -> None:
        path, values = self._by_id(request, identity, "read", ("offset", "length"))
        if "offset" not in values or "length" not in values:
            raise ValueError(f"{request.path}: offset and length are missing")
        offset, length = int(values["offset"]), int(values["length"])
        await self._parts.files.send(request, path, lambda info: _piece(info, offset, length))

    async def _whole(self, request: Request, identity: str) -> None:
        path, _ = self._by_id(request, identity, "read", ("chunkSize",))
        await self._parts.files.send(request, path, lambda info: _piece(info, 0, -1))

    async def _page(self, request: Request, identity: str) -> None:
        identity, _, page = identity.partition("/page/")
        path, values = self._by_id(request, identity, "read", ("offset", "length"))
        size = self._parts.cache.page_bytes
        start, offset = int(page) * size, int(values.get("offset", "0"))
        length = min(int(values.get("length", size)), size - offset)
        if start < 0 or offset < 0 or length < 0:
            raise ValueError(f"page {page}, offset {offset}, length {length}: out of a page of {size} bytes")
        await self._parts.files.send(request, path, lambda info: _piece(info, start + offset, length))

    async def _head(self, request: Request, identity: str) -> None:
        path, values = self._by_id(request, identity, "read", ("numOfBytes",))
        count = int(values.get("numOfBytes", _DEFAULT_SAMPLE_BYTES))
        await self._parts.files.send(request, path, lambda info: _piece(info, 0, max(0, count)))

    async def _tail(self, request: Request, identity: str) -> None:
        path, values = self._by_id(request, identity, "read", ("numOfBytes",))
        count = max(0, int(values.get("numOfBytes", _DEFAULT_SAMPLE_BYTES)))
        await self._parts.files.send(
            request, path, lambda info: _piece(info, max(0, info.size - count), count)
        )

    def _by_id(
        self, request: Request, identity: str, verb: Verb, others: tuple[str, ...]
    ) -> tuple[str, dict[str, str]]:
        """The kara path of a request whose path was pasted into the URL, and its other arguments."""
        raw, values = split_path(request.raw_query, "ufsFullPath", others)
        return self._allowed(request, verb, self._parts.names.resolve(identity, raw)), values

    # -- changes ------------------------------------------------------------------------------------

    async def _write(self, request: Request, identity: str) -> None:
        path, _ = self._by_id(request, identity, "write", ("chunkSize",))
        mount, relative = self._parts.stores.writable(path)
        with self._parts.metrics.store_request(mount.name, "write"):
            store = await self._in_thread(self._parts.stores.store, mount)
            writer = await self._in_thread(store.open_writer, relative)
            await upload(request.body(), writer, self._parts.executor)
        self._changed([path])
        await request.respond_json({"success": True, "message": ""})

    async def _write_page(self, request: Request, identity: str) -> None:
        raise PermissionError(
            "a single page cannot be written: the cache holds nothing that the store does not; "
            "write the whole file by POST /v1/chunk"
        )

    async def _mkdir(self, request: Request, identity: str) -> None:
        path, _ = self._by_id(request, identity, "write", ())
        await self._in_thread(self._changes.make_directory, path)
        await request.respond_json({"success": True})

    async def _touch(self, request: Request, identity: str) -> None:
        path, _ = self._by_id(request, identity, "write", ())
        self._changed(await self._in_thread(self._changes.touch, path))
        await request.respond_json({"success": True})

    async def _rm(self, request: Request, identity: str) -> None:
        path, values = self._by_id(request, identity, "write", _RM_FLAGS)
        recursive = _flag(values, "recursive") or _flag(values, "recursiveAlias")
        # 1.0.17 sends it together with recursiveAlias, and means nothing by it
        meant = self._form == DICT_FORM or not _flag(values, "recursiveAlias")
        if meant and _flag(values, "sync_parent_next_time"):
            raise ValueError(
                "rm with sync_parent_next_time: alluxiofs 1.1 sends it for remove_alluxio_only=True, "
                "which must not delete anything in the store; refused"
            )
        if _flag(values, "remove_alluxio_only"):
            await self._parts.cache.free(path, recursive=True)
        else:
            self._changed(await self._change(lambda: self._changes.remove(path, recursive=recursive)))
        await request.respond_json({"success": True})

    async def _mv(self, request: Request, identity: str) -> None:
        source, target, _ = self._two_paths(request, identity, (), source_verb="write")
        self._changed(await self._change(self._changes.move, source, target))
        await request.respond_json({"success": True})

    async def _copy(self, request: Request, identity: str) -> None:
        source, target, values = self._two_paths(request, identity, _CP_FLAGS, source_verb="read")
        recursive = _flag(values, "recursive") or _flag(values, "recursiveAlias")
        overwrite = _flag(values, "forced")
        copied = await self._change(
            lambda: self._changes.copy(source, target, recursive=recursive, overwrite=overwrite)
        )
        self._changed(copied)
        await request.respond_json({"success": True})

    def _two_paths(
        self, request: Request, identity: str, others: tuple[str, ...], *, source_verb: Verb
    ) -> tuple[str, str, dict[str, str]]:
        ways, values = split_two_paths(request.raw_query, "srcPath", "dstPath", others)
        read = [(source, raw, target) for raw, target in ways for source in spellings(raw)]
        chosen, raw, target = read[self._parts.names.choose(identity, [source for source, _, _ in read])]
        if chosen == raw != next(spellings(raw)) and target != next(spellings(target)):
            # the source holds an escape as it stands, so the target's may be meant either way, and no id says
            raise ValueError(f"{target[:200]!r} may be two names: this client does not say which")
        return (
            self._allowed(request, source_verb, chosen),
            self._allowed(request, "write", next(spellings(target))),
            values,
        )

    def _changed(self, paths: list[str]) -> None:
        for path in paths:
            self._parts.facts.forget(path)


def _piece(info: FileInfo, start: int, length: int) -> Answer:
    """Short at the end of the file, empty beyond it; a negative length means the rest."""
    if start < 0:
        raise ValueError(f"offset {start} of {info.path}")
    stop = info.size if length < 0 else min(start + length, info.size)
    return Answer(min(start, stop), stop, headers=("Content-Type: application/octet-stream",))


def _flag(values: dict[str, str], key: str) -> bool:
    """Python's True and Java's true."""
    return values.get(key, "").lower() == "true"
