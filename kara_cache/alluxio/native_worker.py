"""One worker of a real Alluxio cluster, by its REST interface.

The requests are those of alluxiofs 1.0.17 (client/const.py), except that paths are quoted, so that names
with `&`, `#`, `+` or `%` arrive as they are, and that every wait has an end.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError, TimeoutError
from urllib3.util import Retry, Timeout

from kara_cache.errors import AccessDenied, WorkerUnavailable
from kara_cache.ufs.per_process import PerProcess

SILENCE_S = 20.0  # a cold read waits for the store; alluxiofs 1.1.17 gives up after the same time
_MESSAGE_BYTES = 64 << 10  # of an error
_DOCUMENT_BYTES = 256 << 20  # a directory of a million files
_PIECE_BYTES = 1 << 20
_REDIRECTS = Retry(total=3, connect=False, read=False, other=False, status=0, redirect=3)
_MISSING = ("not found", "not exist", "notfound", "no such file")

Parameters = Mapping[str, str | int | bool | None]


class NativeHttp:
    """The connections of one process. Thread-safe, usable after `fork()`."""

    def __init__(self, *, connections: int, connect_timeout_s: float) -> None:
        self.connect_timeout_s = connect_timeout_s
        self._pools = PerProcess(
            lambda: urllib3.PoolManager(num_pools=256, maxsize=connections, block=False),
            lambda pools: pools.clear(),
        )

    def worker(self, address: str) -> NativeWorker:
        return NativeWorker(self, address)

    def send(self, method: str, url: str, **more: Any) -> Any:
        """urllib3's response, whose type differs between its versions, with the body still to come.

        A worker may name another one for what is to be read; nothing that is written goes twice.
        """
        timeout = Timeout(connect=self.connect_timeout_s, read=SILENCE_S)
        retries = _REDIRECTS if method == "GET" else False
        pools = self._pools.get()
        return pools.request(method, url, timeout=timeout, retries=retries, preload_content=False, **more)

    def close(self) -> None:
        self._pools.close()


class NativeWorker:
    """Paths are full urls of the store. Raises:

    - FileNotFoundError, PermissionError, FileExistsError: what it answered;
    - WorkerUnavailable: it did not answer, or with a failure; `reason` says how.
    """

    def __init__(self, http: NativeHttp, address: str) -> None:
        self.address = address  # host:port
        self._http = http

    def node(self, path: str) -> str:
        """host:port of the worker that has the path, in the form of either line of versions."""
        document = self._document("/v1/node", path, {"path": path})
        try:
            if isinstance(document, list):
                locations = document[0]["mBlockInfo"]["mBlockInfo"]["mLocations"]
                document = locations[0]["mWorkerAddress"]
            return f"{document['Host']}:{int(document['HttpServerPort'])}"
        except (LookupError, TypeError, ValueError) as exc:
            raise self._odd(f"/v1/node: {document!r:.200}") from exc

    def info(self, path: str) -> dict[str, Any]:
        documents = self._documents("/v1/info", path)
        if not documents:
            raise self._odd("/v1/info: an empty list")
        return documents[0]

    def files(self, path: str) -> list[dict[str, Any]]:
        return self._documents("/v1/files", path)

    def load(self, path: str, operation: str, *, verbose: bool | None = None) -> dict[str, Any]:
        """`operation` is submit, progress or stop."""
        told = None if verbose is None else json.dumps(verbose)
        parameters = {"path": path, "opType": operation, "verbose": told}
        document = self._document("/v1/load", path, parameters)
        if not isinstance(document, dict):
            raise self._odd(f"/v1/load: {document!r:.200}")
        return document

    def range_into(self, path: str, start: int, view: memoryview) -> None:
        """Fills `view`; all of it or WorkerUnavailable."""
        parameters: Parameters = {"ufsFullPath": path, "offset": start, "length": len(view)}
        response = self._get(f"/v1/range/{_identity(path)}", path, parameters)
        try:
            filled = 0
            while filled < len(view):
                count = response.readinto(view[filled:])
                if not count:
                    raise self._odd(f"{path}: {filled} bytes from {start}, want {len(view)}", "short")
                filled += count
            if response.read(1):
                raise self._odd(f"{path}: more than {len(view)} bytes from {start}", "long")
        except (HTTPError, OSError) as exc:
            response.close()
            raise self._failed(exc) from exc
        except BaseException:
            response.close()  # what is left of the body must not be the next answer
            raise
        finally:
            response.release_conn()

    def put(self, path: str, chunks: Iterable[bytes]) -> None:
        """Replaces the file."""
        self._post(
            f"/v1/chunk/{_identity(path)}",
            path,
            {"ufsFullPath": path, "chunkSize": _PIECE_BYTES},
            body=chunks,
            chunked=True,
            headers={"transfer-type": "chunked", "Content-Type": "application/octet-stream"},
        )

    def put_page(self, path: str, index: int, page: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        name = f"/v1/file/{_identity(path)}/page/{index}"
        self._post(name, path, {"ufsFullPath": path}, body=page, headers=headers)

    def make_directory(self, path: str) -> None:
        self._post(f"/v1/mkdir/{_identity(path)}", path, {"ufsFullPath": path})

    def touch(self, path: str) -> None:
        self._post(f"/v1/touch/{_identity(path)}", path, {"ufsFullPath": path})

    def move(self, path: str, target: str) -> None:
        self._post(f"/v1/mv/{_identity(path)}", path, {"srcPath": path, "dstPath": target})

    def copy(self, path: str, target: str, options: Parameters) -> None:
        self._post(f"/v1/copy/{_identity(path)}", path, {"srcPath": path, "dstPath": target, **options})

    def remove(self, path: str, options: Parameters) -> None:
        self._post(f"/v1/rm/{_identity(path)}", path, {"ufsFullPath": path, **options})

    def _documents(self, name: str, path: str) -> list[dict[str, Any]]:
        document = self._document(name, path, {"path": path})
        if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
            raise self._odd(f"{name}: {document!r:.200}")
        return document

    def _document(self, name: str, path: str, parameters: Parameters) -> Any:
        response = self._get(name, path, parameters)
        return self._json(name, self._body(response, _DOCUMENT_BYTES))

    def _json(self, name: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as exc:
            raise self._odd(f"{name}: {body[:200]!r}") from exc

    def _get(self, name: str, path: str, parameters: Parameters) -> Any:
        """A response of 200; a connection that died while it was idle is replaced once."""
        url = self._url(name, parameters)
        try:
            response = self._http.send("GET", url)
        except ProtocolError:
            response = self._send("GET", url)
        except (HTTPError, OSError) as exc:
            raise self._failed(exc) from exc
        return self._checked(response, path)

    def _post(self, name: str, path: str, parameters: Parameters, **more: Any) -> None:
        response = self._send("POST", self._url(name, parameters), **more)
        self._body(self._checked(response, path), _MESSAGE_BYTES)

    def _send(self, method: str, url: str, **more: Any) -> Any:
        try:
            return self._http.send(method, url, **more)
        except (HTTPError, OSError) as exc:
            raise self._failed(exc) from exc

    def _url(self, name: str, parameters: Parameters) -> str:
        given = {key: value for key, value in parameters.items() if value is not None}
        query = "&".join(f"{key}={quote(str(value), safe='/:')}" for key, value in given.items())
        return f"http://{self.address}{name}?{query}"

    def _checked(self, response: Any, path: str) -> Any:
        status = int(response.status)
        if 200 <= status < 300:
            return response
        message = _message(self._body(response, _MESSAGE_BYTES))
        where = f"{self.address} says {status}: {message}"
        if status in (401, 403):
            raise AccessDenied(errno.EACCES, where, path)
        if status == 404 and "no such endpoint" in message:
            raise self._odd(f"{status}: {message}; is that the port of an Alluxio worker?")
        if status == 404 or (status == 500 and any(word in message.lower() for word in _MISSING)):
            raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)} ({where})", path)
        if status == 409:
            raise FileExistsError(errno.EEXIST, where, path)
        raise WorkerUnavailable(f"{path}: {where}", reason=f"http_{status}")

    def _body(self, response: Any, most_bytes: int) -> bytes:
        try:
            body = bytes(response.read(most_bytes))
            if len(body) == most_bytes:
                response.close()
        except (HTTPError, OSError) as exc:
            response.close()
            raise self._failed(exc) from exc
        finally:
            response.release_conn()
        return body

    def _failed(self, exc: Exception) -> WorkerUnavailable:
        reason = "unavailable"
        if isinstance(exc, (NewConnectionError, ConnectTimeoutError)):
            reason = "refused"
        elif isinstance(exc, TimeoutError):
            reason = "timeout"
        elif isinstance(exc, (ProtocolError, OSError)):
            reason = "reset"
        return WorkerUnavailable(f"{self.address}: {exc}", reason=reason)

    def _odd(self, what: str, reason: str = "protocol") -> WorkerUnavailable:
        return WorkerUnavailable(f"{self.address} answers {what}", reason=reason)


def _identity(path: str) -> str:
    """What stands for the path in urls."""
    return hashlib.sha256(path.encode()).hexdigest()


def _message(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        document = json.loads(text)
    except ValueError:
        return text[:500]
    return str(document.get("message", text))[:500] if isinstance(document, dict) else text[:500]
