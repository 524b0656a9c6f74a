"""nginx as a cache in front of the same store: proxy_cache with slices of 1 MiB."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.machine import SERVER_CORES, on_cores
from benchmarks.peers.peer import Peer, Served
from benchmarks.servers import free_port, nginx_with

if TYPE_CHECKING:
    from benchmarks.scene import Scene

# No tcp_nopush: with slices it held the end of a 100 KiB body back for 40 ms, until the reader's delayed ACK.
_CONFIGURATION = """
daemon off; master_process off; pid {home}/nginx.pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on;
  keepalive_requests 100000000; keepalive_timeout 600s; open_file_cache max=4096 inactive=600s;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  proxy_cache_path {home}/cache levels=1:2 keys_zone=pages:64m max_size=8g inactive=24h use_temp_path=off;
  upstream store {{ server 127.0.0.1:{store}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      slice 1m; proxy_cache pages; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 24h;
      proxy_set_header Range $slice_range; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass http://store;
    }}
  }}
}}
"""


@contextlib.contextmanager
def _serve(scene: Scene) -> Iterator[Served]:
    home, port = scene.home / "nginx-slice", free_port()
    text = _CONFIGURATION.format(home=home, port=port, store=scene.nginx.port)
    with on_cores(SERVER_CORES), nginx_with(text, home, port) as server:
        yield Served({"port": port}, (server.pid,), scene.nginx.requests)


PEER = Peer(
    "nginx proxy_cache + slice",
    "nginx_slice",
    __name__,
    "one process, sendfile, slices of 1 MiB on the same disk, open-file cache",
    _serve,
    programs={"nginx": "nginx"},
)
