"""The client against real worker processes: cold, warm, same host, killed, paused, with tokens and TLS."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from scripted_worker import FixedMembership

from kara_cache.cache_client import CacheClient
from kara_cache.config import ClientConfig, TlsConfig
from kara_cache.errors import AccessDenied, WorkerUnavailable
from kara_cache.membership.base import WorkerInfo
from kara_cache.secret_ref import Secret
from kara_cache.transport.worker_link import boot_id
from kara_worker.testing.cluster import LocalCluster, WorkerProcess

FAR_S = 30.0
CONTENT = os.urandom(5_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    (root / "sub").mkdir(parents=True)
    (root / "f").write_bytes(CONTENT)
    for number in range(40):
        (root / "sub" / f"{number:03}").write_bytes(CONTENT[number * 1000 : number * 1000 + 5000])
    return root


@pytest.fixture
def pair(store: Path, tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(2, mounts={"m": f"file://{store}"}, directory=tmp_path / "cluster") as cluster:
        yield cluster


def near(worker: WorkerProcess) -> WorkerInfo:
    return WorkerInfo(
        id=worker.id,
        host="127.0.0.1",
        port=worker.port,
        socket_path=worker.ready["socket_path"],
        boot_id=boot_id(),
    )


def connect(cluster: LocalCluster, *, local: bool = False, **options: Any) -> CacheClient:
    config = ClientConfig(**{"stall_timeout_s": FAR_S, "local_reads": local, **options})
    return CacheClient(
        config, membership=FixedMembership(*(near(worker) for worker in cluster.workers if worker.alive))
    )


@pytest.mark.parametrize("local", [False, True], ids=["tcp", "same host"])
def test_cold_and_warm_reads_of_every_kind(pair: LocalCluster, local: bool) -> None:
    with connect(pair, local=local) as client:
        file = client.info("/m/f")
        assert client.read(file, 0, 10_000_000) == CONTENT
        assert client.read(file, 1_000_000, 3_000_000) == CONTENT[1_000_000:4_000_000]
        ranges = [(file, n * 4_999, 3000) for n in range(1000)]
        assert client.read_ranges(ranges) == [CONTENT[s : s + 3000] for _, s, _ in ranges]
        reader, buffer, out = client.open_reader(file), bytearray(100_000), bytearray()
        while count := reader.readinto_at(len(out), buffer):
            out += buffer[:count]
        reader.close()
        assert bytes(out) == CONTENT
        assert [entry.size for entry in client.list("/m/sub")] == [5000] * 40
        assert client.metrics.fallbacks == {}
        assert client.metrics.worker_reads["fill"] >= 1
        if local:
            assert client.metrics.reads["local"] > 0


def test_pages_of_a_killed_worker_are_read_on_and_the_rest_comes_from_the_other(pair: LocalCluster) -> None:
    with connect(pair, local=True) as client:
        file = client.info("/m/f")
        client.read(file, 0, 5_000_000)
        for worker in pair.workers:
            explained = {answer["id"]: answer for answer in client.explain("/m/f")["workers"]}
            if explained[worker.id]["cached"]:
                worker.kill()
        assert client.read(file, 0, 5_000_000) == CONTENT


def test_a_worker_killed_in_the_middle_costs_no_byte(pair: LocalCluster) -> None:
    with connect(pair) as client:
        file, buffer, out = client.info("/m/f"), bytearray(50_000), bytearray()
        owner = pair.worker(client.explain("/m/f")["owners"][0]["workers"][0])
        while count := client.read_into(file, len(out), buffer):
            out += buffer[:count]
            if len(out) == 1_000_000:
                owner.kill()
        assert bytes(out) == CONTENT
        assert sum(client.metrics.fallbacks.values()) >= 1


def test_a_paused_worker_is_left_alone(pair: LocalCluster) -> None:
    with connect(pair, stall_timeout_s=0.3, suspect_s=600.0) as client:
        file = client.info("/m/f")
        owner = pair.worker(client.explain("/m/f")["owners"][0]["workers"][0])
        owner.pause()
        try:
            for start in range(0, 5_000_000, 500_000):
                assert client.read(file, start, 1000) == CONTENT[start : start + 1000]
            assert client.metrics.fallbacks == {"timeout": 1}
        finally:
            owner.resume()


def test_what_is_written_is_read_by_another_client(pair: LocalCluster) -> None:
    with connect(pair) as one, connect(pair) as other:
        one.write("/m/new/deep", b"first")
        assert other.read(other.info("/m/new/deep"), 0, 10) == b"first"
        one.write("/m/new/deep", b"second!")
        assert other.read(other.info("/m/new/deep"), 0, 10) == b"second!"
        with one.open_writer("/m/new/deep", append=True) as writer:
            writer.write(b" third")
            writer.commit()
        assert other.read(other.info("/m/new/deep"), 0, 99) == b"second! third"
        one.delete("/m/new/deep")
        with pytest.raises(FileNotFoundError):
            other.info("/m/new/deep")


def test_free_drops_pages_everywhere_and_the_next_read_fills_again(pair: LocalCluster) -> None:
    with connect(pair) as client:
        file = client.info("/m/f")
        client.read(file, 0, 5_000_000)
        pages, freed = client.free("/m/f")  # waits for what is on its way to SSD
        assert (pages >= 5, freed >= 5_000_000) == (True, True)
        assert [answer["cached"] for answer in client.explain("/m/f")["workers"]] == [0, 0]
        assert client.read(file, 0, 100) == CONTENT[:100]


def test_counts_of_clients_show_in_the_metrics_of_a_worker(pair: LocalCluster) -> None:
    with connect(pair) as client:
        file = client.info("/m/f")
        for _ in range(3):
            client.read(file, 0, 100)
        client.read_ranges([(file, 0, 5), (file, 5, 5)])
        assert client.flush_metrics()
    assert pair.total('kara_client_reads_total{kind="worker"}') == 5
    assert pair.total("kara_client_read_seconds_count") == 3
    assert pair.total("kara_client_batch_seconds_count") == 1


def test_threads_of_both_kinds_of_reads_share_one_client(pair: LocalCluster) -> None:
    wrong: list[str] = []
    with connect(pair, local=True, connections_per_worker=3) as client:
        file = client.info("/m/f")

        def work(seed: int) -> None:
            at, reader = seed, client.open_reader(file)
            for turn in range(60):
                at = (at * 48271 + 11) % 4_900_000
                got = [
                    client.read(file, at, 20_000),
                    bytes(reader.read_at(turn * 80_000, 80_000)),
                    bytes(client.read_ranges([(file, at, 999)])[0]),
                ]
                want = [
                    CONTENT[at : at + 20_000],
                    CONTENT[turn * 80_000 : turn * 80_000 + 80_000],
                    CONTENT[at : at + 999],
                ]
                if got != want:
                    wrong.append(f"turn {turn} at {at}")
            reader.close()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert wrong == []


def test_tokens_and_tls(store: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    secret_file = tmp_path / "secret"
    secret_file.write_text("a secret of more than sixteen bytes\n")
    with LocalCluster(
        1,
        mounts={"m": f"file://{store}"},
        directory=tmp_path / "cluster",
        tls_cert=str(tmp_path / "server.pem"),
        tls_key=str(tmp_path / "server.pem"),
        secret=f"file:{secret_file}",
    ) as cluster:
        tls = TlsConfig(ca=str(tmp_path / "ca.pem"))
        with connect(cluster, tls=tls, secret=Secret(f"file:{secret_file}")) as client:
            file = client.info("/m/f")
            assert client.read(file, 0, 5_000_000) == CONTENT
            assert client.read(file, 0, 5_000_000) == CONTENT
            assert client.read_ranges([(file, 7, 100)]) == [CONTENT[7:107]]
        with connect(cluster, tls=tls) as stranger, pytest.raises(AccessDenied):
            stranger.info("/m/f")
        with connect(cluster, tls=tls, token=Secret("kara1.x.y")) as forger, pytest.raises(AccessDenied):
            forger.info("/m/f")
        distrustful = TlsConfig(ca="system")
        with connect(cluster, tls=distrustful) as client, pytest.raises(WorkerUnavailable) as caught:
            client.info("/m/f")
        assert caught.value.reason == "tls"
