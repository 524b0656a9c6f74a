"""Everybody, by group."""

from __future__ import annotations

from benchmarks.peers import (
    alluxio_clients,
    boto,
    fsspec_caches,
    juicefs,
    memcached,
    mooncake,
    nginx_slice,
    ray_objects,
    redis_server,
    s3_filesystem,
    s3_torch_connector,
    varnish,
)
from benchmarks.peers.peer import Peer

SERVERS: tuple[Peer, ...] = (nginx_slice.PEER, varnish.PEER)  # of files by HTTP, under the loader

READERS: tuple[Peer, ...] = (
    memcached.PEER,
    redis_server.PEER,
    mooncake.PEER,
    *alluxio_clients.PEERS,
    boto.PEER,
    s3_filesystem.PEER,
    s3_torch_connector.PEER,
    juicefs.PEER,
    ray_objects.PEER,
    *fsspec_caches.PEERS,
)  # with a client in Python
