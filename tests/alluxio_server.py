"""A worker of Alluxio as its REST interface shows it: files in memory, every request kept.

What it answers, and in which form, is what alluxiofs 1.0.17 and 1.1.17 read of a real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    endpoint: str  # "range" of /v1/range/77828262...
    parameters: dict[str, str]
    identity: str = ""  # what follows in the path
    body: bytes = b""


@dataclass
class AlluxioServer:
    """Set `failures` to have an endpoint answer (status, message), `gone` to have connections cut."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)  # by url
    list_form: bool = True  # of /v1/node
    node: str = ""  # host:port that /v1/node names; "" for itself
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    gone: bool = False
    cuts: int = 0  # requests that are not answered, but their connections cut
    short: int = 0  # bytes that every range lacks
    loads: dict[str, str] = field(default_factory=dict)  # state by path
    requests: list[Request] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, endpoint: str) -> list[Request]:
        return [request for request in self.requests if request.endpoint == endpoint]

    def answer(self, request: Request) -> tuple[int, bytes]:
        self.requests.append(request)
        if request.endpoint in self.failures:
            status, message = self.failures[request.endpoint]
            return status, json.dumps({"message": message}).encode()
        path = request.parameters.get("path") or request.parameters.get("ufsFullPath", "")
        found = getattr(self, f"_{request.method.lower()}_{request.endpoint}")(path, request)
        return (500, f"{path} does not exist".encode()) if found is None else (200, found)

    def _get_node(self, path: str, request: Request) -> bytes:
        host, _, port = (self.node or self.address).rpartition(":")
        address = {"Host": host, "HttpServerPort": int(port)}
        listed = [{"mBlockInfo": {"mBlockInfo": {"mLocations": [{"mWorkerAddress": address}]}}}]
        return json.dumps(listed if self.list_form else address).encode()

    def _get_info(self, path: str, request: Request) -> bytes | None:
        status = self._status(path.rstrip("/"))
        return None if status is None else json.dumps([status]).encode()

    def _get_files(self, path: str, request: Request) -> bytes | None:
        path = path.rstrip("/")
        if path in self.files:
            return json.dumps([self._status(path)]).encode()
        below = {url[len(path) + 1 :].partition("/")[0] for url in self.files if url.startswith(f"{path}/")}
        return json.dumps([self._status(f"{path}/{name}") for name in below]).encode() if below else None

    def _status(self, url: str) -> dict[str, Any] | None:
        kind = "file" if url in self.files else "directory"
        if kind == "directory" and not any(file.startswith(f"{url}/") for file in self.files):
            return None
        size = len(self.files.get(url, b""))
        return {
            "mType": kind,
            "mName": url.rpartition("/")[2],
            "mPath": url.partition(":/")[2],
            "mUfsPath": url,
            "mLength": size,
            "mHumanReadableFileSize": f"{size}B",
            "mLastModificationTimeMs": 1_700_000_000_000,
        }

    def _get_range(self, path: str, request: Request) -> bytes | None:
        start, length = int(request.parameters["offset"]), int(request.parameters["length"])
        content = self.files.get(path)
        return None if content is None else content[start : start + length - self.short]

    def _get_chunk(self, path: str, request: Request) -> bytes | None:
        return self.files.get(path)

    def _get_load(self, path: str, request: Request) -> bytes:
        operation = request.parameters["opType"]
        if operation == "progress":
            state = self.loads.get(path, "FAILED")
            return json.dumps({"jobState": state, "path": path, "message": "", "respProperties": {}}).encode()
        self.loads[path] = "RUNNING" if operation == "submit" else "STOPPED"
        return json.dumps({"success": True, "jobId": "1", "path": path, "message": ""}).encode()

    def _post_chunk(self, path: str, request: Request) -> bytes:
        self.files[path] = request.body
        return b"{}"

    _post_file = _post_chunk

    def _post_touch(self, path: str, request: Request) -> bytes:
        self.files[path] = b""
        return b""

    def _post_mkdir(self, path: str, request: Request) -> bytes:
        return b""

    def _post_rm(self, path: str, request: Request) -> bytes | None:
        if request.parameters["remove_alluxio_only"] == "True":
            return b""
        gone = [url for url in self.files if url == path or url.startswith(f"{path}/")]
        for url in gone:
            del self.files[url]
        return b"" if gone else None

    def _post_mv(self, path: str, request: Request) -> bytes:
        self.files[request.parameters["dstPath"]] = self.files.pop(request.parameters["srcPath"])
        return b""

    def _post_copy(self, path: str, request: Request) -> bytes:
        self.files[request.parameters["dstPath"]] = self.files[request.parameters["srcPath"]]
        return b""


@contextmanager
def alluxio_server(files: dict[str, bytes] | None = None) -> Iterator[AlluxioServer]:
    """Ends with its threads gone."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            _, _, endpoint, *rest = split.path.split("/")
            if served.gone or served.cuts:
                served.cuts -= bool(served.cuts)
                self.close_connection = True
                return
            body = self._body() if self.command == "POST" else b""
            parameters = dict(parse_qsl(split.query, keep_blank_values=True))
            status, answer = served.answer(
                Request(self.command, endpoint, parameters, unquote("/".join(rest)), body)
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *_: object) -> None:
            """To nobody: requests are kept."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served = AlluxioServer(server.server_address[1], dict(files or {}))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield served
        finally:
            served.gone = True  # threads of open connections outlive the server
            server.shutdown()
            thread.join(30)
