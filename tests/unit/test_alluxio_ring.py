"""The ring against numbers that alluxiofs 1.0.17 computed, and against its own code in plain Python."""

from __future__ import annotations

import json
import uuid

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache.alluxio.ring import Ring, RingWorker, hash_of, hash_of_path
from kara_cache.errors import FormatError

HOSTS = {host: RingWorker.of_host(f"worker-{host}") for host in "abc"}
NAMES = {worker: host for host, worker in HOSTS.items()}

VIRTUAL_NODES = {
    "a": (
        "ff21fe4aec38359aaabfcd82486490b0",
        [1914905966, 31999456, 381309352, 1341303917, -900985658],
    ),
    "b": (
        "8da0ee3e1910368eaf6100939c74cbb2",
        [1232497610, -2071961784, -1933055473, -1510677537, 535334508],
    ),
    "c": (
        "045ba1135aa23e79986230f778acfc1c",
        [1878047249, 1586605448, 350495430, 1049605181, -1193525297],
    ),
}

# path, its hash, all workers in order with 5 virtual nodes each, the first one with 2000
PATHS = [
    ("s3://bucket/path/to/dataset/file1.parquet", 2031930958, "bac", "a"),
    ("s3://bucket/a", 950946303, "cba", "a"),
    ("s3://bucket/b", -556669711, "acb", "a"),
    ("s3://bucket/c.csv", 759451167, "cab", "b"),
    ("oss://bkt/train/00000.tar", 1870439296, "cab", "b"),
    ("oss://bkt/train/00001.tar", -873934422, "abc", "a"),
    ("file:///data/x.bin", -1515773482, "bac", "b"),
    ("https://example.com/models/m.safetensors", -733394785, "acb", "b"),
    ("s3://b/中文.txt", 1053863486, "bca", "a"),
    ("s3://bucket/a/", -1249154677, "cba", "c"),
]

FROM_ETCD = [
    [875401461, 264745839, -2000023465, -175341952, -1149261880],
    [843503846, 1647379043, 1015030288, 348907081, -901177934],
    [1175358644, -1078075834, 967507969, -1975712524, 1731919316],
]
FROM_ETCD_PATHS = {
    "s3://bucket/a": ([3, 2, 1], 1635997543),
    "s3://bucket/b": ([1, 2, 3], -138719450),
    "oss://bkt/train/00000.tar": ([1, 2, 3], -335547891),
    "file:///data/x.bin": ([1, 3, 2], -263495419),
}


@pytest.mark.parametrize("host", HOSTS)
def test_identity_and_virtual_nodes_of_a_host(host: str) -> None:
    identifier, nodes = VIRTUAL_NODES[host]
    worker = HOSTS[host]
    assert (worker.identifier.hex(), worker.version) == (identifier, 1)
    assert [hash_of(worker, i) for i in range(5)] == nodes


@pytest.mark.parametrize(("path", "hashed", "order", "first_of_2000"), PATHS)
def test_owners_of_a_path(path: str, hashed: int, order: str, first_of_2000: str) -> None:
    assert hash_of_path(path, 1) == hashed
    assert "".join(NAMES[worker] for worker in Ring(HOSTS.values()).owners(path, 3)) == order
    (first,) = Ring(HOSTS.values(), 2000).owners(path)
    assert NAMES[first] == first_of_2000


def test_workers_as_etcd_has_them() -> None:
    workers = [RingWorker(bytes([number]) * 16, 1, f"w{number}", 28080) for number in (1, 2, 3)]
    assert [[hash_of(worker, i) for i in range(5)] for worker in workers] == FROM_ETCD
    ring = Ring(workers)
    for path, (order, second_try) in FROM_ETCD_PATHS.items():
        assert [worker.identifier[0] for worker in ring.owners(path, 3)] == order
        assert hash_of_path(path, 2) == second_try


@given(
    identifiers=st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=6),
    virtual_nodes=st.integers(1, 7),
    path=st.text(st.characters(codec="utf-8"), max_size=30),
    count=st.integers(0, 8),
)
def test_owners_are_those_of_the_published_algorithm(
    identifiers: list[bytes], virtual_nodes: int, path: str, count: int
) -> None:
    workers = [RingWorker(identifier, 1, "host", port) for port, identifier in enumerate(identifiers, 1)]
    found = Ring(workers, virtual_nodes).owners(path, count)
    assert [worker.identifier for worker in found] == published_owners(
        identifiers, virtual_nodes, path, count
    )


def published_owners(identifiers: list[bytes], virtual_nodes: int, key: str, count: int) -> list[bytes]:
    """alluxiofs 1.0.17, `ConsistentHashProvider`, with a sorted dict spelled out."""

    def digest(*parts: bytes) -> int:
        hasher = mmh3.mmh3_32()
        for part in parts:
            hasher.update(part)
        return hasher.sintdigest()

    ring = {}
    for identifier in dict.fromkeys(identifiers):
        for i in range(virtual_nodes):
            ring[digest(identifier, (1).to_bytes(4, "little"), i.to_bytes(4, "little"))] = identifier
    found: list[bytes] = []
    attempts = 0
    while len(found) < min(count, len(set(identifiers))) and attempts < 100:
        attempts += 1
        hashed = digest(key.encode(), attempts.to_bytes(4, "little"))
        above = [node for node in ring if node > hashed]
        worker = ring[min(above)] if above else ring[min(ring)]
        if worker not in found:
            found.append(worker)
    return found


def test_a_virtual_node_at_the_very_hash_of_a_path_is_not_its_owner() -> None:
    """Strictly above: here the bytes hashed for a path and for a virtual node are the same."""
    worker = RingWorker(b"s3://bucket/x", 1, "one", 1)
    path = "s3://bucket/x\x01\0\0\0"
    assert hash_of_path(path, 1) == hash_of(worker, 1)
    others = [RingWorker(bytes([number]) * 16, 1, "other", number) for number in range(2, 30)]
    (owner,) = Ring([worker, *others]).owners(path)
    assert owner in others


def test_no_workers_own_nothing() -> None:
    assert Ring([]).owners("s3://bucket/a") == ()


def test_a_later_worker_of_the_same_identity_is_the_one() -> None:
    moved = RingWorker(HOSTS["a"].identifier, 1, "elsewhere", 1)
    assert Ring([HOSTS["a"], moved]).owners("s3://bucket/a", 2) == (moved,)


def test_the_port_is_not_hashed() -> None:
    one, other = RingWorker.of_host("h", 1), RingWorker.of_host("h", 2)
    assert (one.identifier, one.name) == (other.identifier, "h:1")
    assert uuid.UUID(bytes=one.identifier).version == 3


def test_a_record_of_etcd() -> None:
    record = {
        "Identity": {"version": 1, "identifier": "f528764d624d3129b32c21fbca0cb8d6"},
        "WorkerNetAddress": {"Host": "10.0.0.7", "HttpServerPort": 28081, "RpcPort": 29999},
        "State": "AUTHORIZED",
    }
    worker = RingWorker.of_record(json.dumps(record).encode())
    assert (worker.name, worker.identifier.hex()) == ("10.0.0.7:28081", "f528764d624d3129b32c21fbca0cb8d6")


def test_what_a_record_leaves_out_is_as_alluxiofs_has_it() -> None:
    worker = RingWorker.of_record(b'{"Identity": {"version": 0, "identifier": "00ff"}}')
    assert (worker.name, worker.version) == ("localhost:28080", 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"\xff",
        b"[]",
        b"{}",
        b'{"Identity": {"version": 1}}',
        b'{"Identity": {"version": 1, "identifier": "xyz"}}',
        b'{"Identity": {"version": 99999999999, "identifier": "00"}}',
        b'{"Identity": {"version": 1, "identifier": "00"}, "WorkerNetAddress": {"Host": "a b"}}',
        b'{"Identity": {"version": 1, "identifier": "00"}, "WorkerNetAddress": {"HttpServerPort": 0}}',
    ],
)
def test_what_is_no_record_of_a_worker(value: bytes) -> None:
    with pytest.raises(FormatError, match="Alluxio worker"):
        RingWorker.of_record(value)
