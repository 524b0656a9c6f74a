"""A file server that answers late and slowly, as an object store does.

    python -m benchmarks.distant_store DIRECTORY PORT FIRST_BYTE_S BYTES_PER_S

Each request waits FIRST_BYTE_S; each connection gets at most BYTES_PER_S. Connections do not share.
"""

from __future__ import annotations

import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

_PIECE = 256 << 10


class Distant(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    root = ""
    first_byte_s = 0.0
    bytes_per_s = 1

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.first_byte_s)
        path = os.path.join(self.root, unquote(self.path).lstrip("/"))
        if not os.path.isfile(path):
            self.send_error(404)
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            self._send(fd)
        finally:
            os.close(fd)

    def _send(self, fd: int) -> None:
        facts = os.fstat(fd)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, facts.st_size
        if asked:
            start, stop = int(asked[1]), min(stop, int(asked[2] or stop) + 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{facts.st_size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{facts.st_size:x}-{facts.st_mtime_ns:x}"')
        self.send_header("Last-Modified", self.date_time_string(int(facts.st_mtime)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        began, at = time.monotonic(), start
        while at < stop:
            at += os.sendfile(self.connection.fileno(), fd, at, min(_PIECE, stop - at))
            ahead = (at - start) / self.bytes_per_s - (time.monotonic() - began)
            if ahead > 0 and at < stop:
                time.sleep(ahead)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def main(directory: str, port: str, first_byte_s: str, bytes_per_s: str) -> None:
    Distant.root, Distant.first_byte_s, Distant.bytes_per_s = directory, float(first_byte_s), int(bytes_per_s)
    _Server(("127.0.0.1", int(port)), Distant).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:5])
