"""An OSS endpoint on 127.0.0.1 for tests and demos, for use with the real client library.

It checks V1 and V4 signatures, keeps buckets in memory or in a directory, answers the object,
listing, multipart and append calls, follows OSS where it differs from S3 (`x-oss-range-behavior`),
logs every request and fails on demand. Path style only: an IP has no bucket subdomains.

    python -m kara_worker.testing.oss_server --port 9000 --key-id ID --key-secret SECRET --bucket data
"""

from __future__ import annotations

import argparse
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import FrameType, TracebackType
from typing import TextIO

from kara_worker.testing.oss_faults import FaultScript, RequestLog
from kara_worker.testing.oss_objects import ObjectShelf
from kara_worker.testing.oss_requests import OssRequestHandler
from kara_worker.testing.oss_signature import OssCredentials


class OssListener(ThreadingHTTPServer):
    """The listening socket and its threads; knows the open connections, so that closing does not wait."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, site: OssServer, tls: ssl.SSLContext | None) -> None:
        self.site = site
        self.accepted = 0
        self._tls = tls
        self._lock = threading.Lock()  # guards _open
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), OssRequestHandler)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, address = self.socket.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted += 1
        if self._tls is not None:  # the handshake is for the connection's own thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests; anything else is a bug and is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError | ssl.SSLError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):  # already closed by its thread or the peer
                connection.shutdown(socket.SHUT_RDWR)


class OssServer:
    """A running endpoint. `with OssServer(buckets=["data"]) as oss:` serves `oss.endpoint` until the end.

    Args:
        public_buckets: readable without a signature, as with the ACL public-read.
        check_if_match: False plays a store that ignores If-Match.
        directory: objects are kept there and found again by the next server.
        tls: serves https with it.
        log_file: gets one JSON line a request; `requests` then stays empty.
    """

    def __init__(
        self,
        *,
        key_id: str = "test-key-id",
        key_secret: str = "test-key-secret",
        security_token: str | None = None,
        region: str = "cn-hangzhou",
        buckets: Iterable[str] = (),
        public_buckets: Iterable[str] = (),
        check_if_match: bool = True,
        directory: Path | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        log_file: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.credentials = OssCredentials(key_id, key_secret, security_token)
        self.region = region
        self.check_if_match = check_if_match
        self.clock = clock
        self.objects = ObjectShelf(directory, clock)
        self.faults = FaultScript()
        self.requests = RequestLog(log_file)
        self.closing = threading.Event()
        self._scheme = "http" if tls is None else "https"
        for name in buckets:
            self.objects.create_bucket(name)
        for name in public_buckets:
            self.objects.create_bucket(name, public_read=True)
        self._listener = OssListener(port, self, tls)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.05,), name="oss-server", daemon=True
        )
        self._thread.start()

    @property
    def host(self) -> str:
        """`127.0.0.1:port`, as in `oss://host/bucket/prefix`."""
        return f"127.0.0.1:{self._listener.server_address[1]}"

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://{self.host}"

    @property
    def connections(self) -> int:
        """Accepted so far: a client that reuses its own needs few."""
        return self._listener.accepted

    def close(self) -> None:
        if self.closing.is_set():
            return
        self.closing.set()
        self._listener.shutdown()
        self._listener.hang_up()
        self._listener.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> OssServer:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OssServer {self.endpoint} {self.objects.bucket_names()}>"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kara_worker.testing.oss_server", description="An OSS endpoint for tests and demos."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the ready line names it")
    parser.add_argument("--key-id", default="test-key-id")
    parser.add_argument("--key-secret", default="test-key-secret")
    parser.add_argument("--region", default="cn-hangzhou")
    parser.add_argument("--bucket", action="append", default=[], help="created at start; repeatable")
    parser.add_argument("--public-bucket", action="append", default=[], help="readable without a signature")
    parser.add_argument("--directory", type=Path, help="keep the objects there instead of in memory")
    parser.add_argument("--log", type=Path, help="append one JSON line a request")
    options = parser.parse_args(arguments)
    log_file = options.log.open("a", encoding="utf-8") if options.log else None
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        with OssServer(
            key_id=options.key_id,
            key_secret=options.key_secret,
            region=options.region,
            buckets=options.bucket,
            public_buckets=options.public_bucket,
            directory=options.directory,
            port=options.port,
            log_file=log_file,
        ) as server:
            print(f"ready {server.endpoint}", flush=True)
            stop.wait()
    finally:
        if log_file is not None:
            log_file.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
