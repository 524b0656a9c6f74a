"""`GET /info`, `POST /files` and `GET /list`: who asks for what, and whether it may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from kara_cache.errors import AccessDenied
from kara_cache.file_answer import MAX_BODY_BYTES, decode_paths
from kara_cache.mount import normalize_path
from kara_cache.token import Claims
from kara_cache.wire import PREFIX
from kara_worker.access import AccessControl
from kara_worker.data_port.file_answers import Asked, FileAnswers
from kara_worker.file_facts import FileFacts
from kara_worker.http.arguments import max_age_s, number, text
from kara_worker.http.request import Request
from kara_worker.http.server import Connection

_INFO = f"GET {PREFIX}/info?".encode()
_ANY_SIZE = 1 << 62
_MAX_QUERIES = 32_768  # of some 700 bytes each


class FileEndpoints:
    """Event loop only."""

    def __init__(self, answers: FileAnswers, facts: FileFacts, access: AccessControl) -> None:
        self._answers = answers
        self._facts = facts
        self._access = access
        # what a query asks for, of those that can be answered again without a store
        self._queries: dict[bytes, Asked] = {}

    def routes(self) -> dict[tuple[str, str], tuple[str, Callable[[Request], Awaitable[None]]]]:
        return {
            ("GET", "/info"): ("info", self._info),
            ("POST", "/files"): ("files", self._files),
            ("GET", "/list"): ("list", self._list),
        }

    def try_answer(self, connection: Connection, head: bytes) -> bool:
        """Answers a query that was asked before from what is known and in memory; else nothing was sent."""
        if not head.startswith(_INFO):
            return False
        query = head[len(_INFO) : head.find(b" HTTP/1.1")]
        asked = self._queries.get(query)
        if asked is None or b"onnection: close" in head or not self._access.granted(connection, head, query):
            return False
        return self._answers.try_known(connection, asked)

    def forget(self) -> None:
        """After the mount table changed."""
        self._queries.clear()

    async def _info(self, request: Request) -> None:
        path, query = text(request, "path"), request.raw_query.encode()
        self._access.grant(request, query, path)
        start, length = number(request, "start", 0), number(request, "length", 0)
        at_most = number(request, "at_most", _ANY_SIZE)
        await self._answers.respond(request, path, start, length, at_most, max_age_s(request))
        if "age" not in request.query and self._facts.known(path) is not None:
            if len(self._queries) >= _MAX_QUERIES:
                self._queries.clear()
            self._queries[query] = Asked(path, self._facts.mount_of(path), start, length, at_most)

    async def _files(self, request: Request) -> None:
        paths = decode_paths(await request.body_bytes(MAX_BODY_BYTES))
        claims = self._access.identify(request)
        checked = [_readable(path, claims) for path in paths]
        await self._answers.respond_all(request, checked, number(request, "at_most", 0), max_age_s(request))

    async def _list(self, request: Request) -> None:
        path = text(request, "path")
        self._access.check(request, "read", path)
        recursive = request.query.get("recursive") == "1"
        pages = self._facts.listings.pages(path, recursive=recursive, max_age_s=max_age_s(request))
        async with aclosing(pages):
            page = await anext(pages, b"")  # a missing directory raises before the head is out
            await request.start(length=None, headers=["Content-Type: application/x-ndjson"])
            while page:
                await request.write_chunk(page)
                page = await anext(pages, b"")
        await request.finish()


def _readable(path: str, claims: Claims | None) -> str | Exception:
    try:
        path = normalize_path(path)
        if claims is not None:
            claims.require("read", path)
    except (ValueError, AccessDenied) as exc:
        return exc
    return path
