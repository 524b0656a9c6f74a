"""One factory for each kind of under store that the contract suite runs over.

To add a kind: write a context manager that takes an empty directory and yields a `Site`, and name it
in `STORES`. A kind that needs something which may not be installed asks `services` for it.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import services

from kara_cache.ufs import UnderStore, open_store
from kara_cache.ufs.fsspec import FsspecStore
from kara_cache.ufs.memory import MemoryStore
from kara_worker.testing.rude_http_server import RudeHttpServer

SECRET = "hunter2"  # factories of stores with credentials put it in them: it must not show up anywhere

_counter = itertools.count()


@dataclass(frozen=True)
class Capabilities:
    """What a kind cannot do, so that a law is tested by its refusal. Everything else is law for all."""

    writes: bool = True  # else every verb that changes something raises io.UnsupportedOperation
    appends: bool = False  # else open_writer(append=True) raises io.UnsupportedOperation
    dot_names: bool = True  # are listed
    directories: bool = False  # empty ones exist, and no file has children; object stores have neither


@dataclass(frozen=True)
class Site:
    """A store, and the way behind its back to what it stores."""

    kind: str
    store: UnderStore
    put: Callable[[str, bytes], None]  # makes or overwrites a file; parents are made
    delete: Callable[[str], None]
    capabilities: Capabilities = field(default_factory=Capabilities)
    requests: Callable[[], int] | None = None  # so far seen by the server; None where there is none

    def requests_seen(self) -> int:
        return self.requests() if self.requests is not None else 0


Factory = Callable[[Path], AbstractContextManager[Site]]


@contextmanager
def memory(root: Path) -> Iterator[Site]:
    store = MemoryStore("contract")

    def put(path: str, data: bytes) -> None:
        store.write(path, data)

    yield Site(
        "memory",
        store,
        put,
        store.delete,
        Capabilities(appends=True, directories=True),
    )
    store.close()


@contextmanager
def local(root: Path) -> Iterator[Site]:
    with closing(open_store(f"file://{root}")) as store:
        yield Site(
            "local",
            store,
            lambda path, data: put_file(root / path, data),
            lambda path: (root / path).unlink(),
            Capabilities(appends=True, directories=True),
        )


def put_file(path: Path, data: bytes) -> None:
    """In place, as careless programs do: same inode, no rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextmanager
def http(root: Path) -> Iterator[Site]:
    with RudeHttpServer() as server, closing(open_store(with_secret(server.url) + "/data")) as store:
        yield Site(
            "http",
            store,
            lambda path, data: server.put(f"data/{path}", data),
            lambda path: server.delete(f"data/{path}"),
            Capabilities(writes=False),
            requests=lambda: len(server.requests),
        )


@contextmanager
def fsspec_memory(root: Path) -> Iterator[Site]:
    system, base = fsspec.filesystem("memory"), f"/{root.name}-{next(_counter)}"
    system.makedirs(base)  # in fsspec's memory a directory is there only when it was made, or has something
    with closing(open_store(f"memory://{base}")) as store:
        yield Site(
            "fsspec-memory",
            store,
            lambda path, data: system.pipe_file(f"{base}/{path}", data),
            lambda path: system.rm_file(f"{base}/{path}"),
        )
    system.rm(base, recursive=True)


@contextmanager
def fsspec_local(root: Path) -> Iterator[Site]:
    with closing(FsspecStore(f"file://{root}", {})) as store:
        yield Site(
            "fsspec-local",
            store,
            lambda path, data: put_file(root / path, data),
            lambda path: (root / path).unlink(),
            Capabilities(directories=True),
        )


NGINX_CONF = """
daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {root}/access.log; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}/files; autoindex on; }}
}}
"""


@contextmanager
def nginx(root: Path) -> Iterator[Site]:
    """The web server that most HTTP mounts will meet, as it is out of the box."""
    program, port = services.require("nginx"), services.free_port()
    (root / "files" / "data").mkdir(parents=True)
    (root / "nginx.conf").write_text(NGINX_CONF.format(root=root, port=port))
    mtimes = itertools.count(1_600_000_000)  # nginx makes the ETag of whole seconds and the size

    def put(path: str, data: bytes) -> None:
        target = root / "files" / "data" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "new").write_bytes(data)
        os.utime(root / "new", (mtime := next(mtimes), mtime))
        os.replace(root / "new", target)  # written in place, nginx would send old and new bytes mixed

    def requests() -> int:
        return len((root / "access.log").read_bytes().splitlines())

    def delete(path: str) -> None:
        (root / "files" / "data" / path).unlink()

    command = [program, "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]
    with serving(command, port), closing(open_store(f"http://127.0.0.1:{port}/data")) as store:
        capabilities = Capabilities(writes=False, dot_names=False)
        yield Site("nginx", store, put, delete, capabilities, requests=requests)


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    """A server process, from the moment its port answers."""
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 30
            while not listens(port):
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{command[0]} does not listen on {port}"
                time.sleep(0.01)
            yield
        finally:
            process.kill()
            process.wait(timeout=10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def with_secret(url: str) -> str:
    return url.replace("://", f"://user:{SECRET}@")


STORES: dict[str, Factory] = {
    "memory": memory,
    "local": local,
    "http": http,
    "nginx": nginx,
    "fsspec-memory": fsspec_memory,
    "fsspec-local": fsspec_local,
}
# Fixtures that a test asks for to say that its law is not for every kind; these say for which it is.
READ_ONLY = {"http", "nginx"}
HIERARCHICAL = {"memory", "local", "fsspec-local"}  # have directories of their own, not just keys


def concerns(kind: str, fixtures: Sequence[str]) -> bool:
    if "writable" in fixtures and kind in READ_ONLY:
        return False
    if "read_only" in fixtures and kind not in READ_ONLY:
        return False
    return "hierarchical" not in fixtures or kind in HIERARCHICAL


MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = {}
