"""Rows in an OSS server, read by DataLoaders through three workers: whose requests reach the store."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import services

from kara_cache import KaraStorage
from kara_cache.errors import KaraError
from kara_cache.sampling import order_of_2
from kara_cache.serialization import NoSerializer
from kara_cache.storage.rows.paged_words import PagedWords
from kara_worker.testing.cluster import LocalCluster
from kara_worker.testing.etcd_server import EtcdServer
from kara_worker.testing.oss_server import OssServer

torch_data = services.require_module("torch.utils.data")

pytestmark = [
    pytest.mark.oss,
    pytest.mark.leaves_running("connections and read threads of the module's cluster and server"),
    # oss2 2.19 signs V4 with datetime.utcnow, deprecated since Python 3.12.
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
COUNT = 3000
RAW = NoSerializer()
KEYS: dict[str, Any] = {"app_key": "test-key-id", "app_secret": "test-key-secret", "use_ssl": False}


def rows_of(seed: int) -> list[bytes]:
    source = random.Random(seed)
    return [b"%08d " % i + source.randbytes(source.randrange(0, 6000)) for i in range(COUNT)]


ROWS = rows_of(1)


@dataclass
class Site:
    server: OssServer
    cluster: LocalCluster
    opened: list[KaraStorage] = field(default_factory=list)  # closed at the end, not when they are forgotten

    def storage(self, **cache: Any) -> KaraStorage:
        """A client of the cluster; local_reads=False is one on another host."""
        options = {**self.cluster.client_options, **cache}
        return self._kept(KaraStorage(f"kara::oss://{self.server.host}/bench", kara=options))

    def straight(self) -> KaraStorage:
        return self._kept(KaraStorage(f"oss://{self.server.host}/bench", **KEYS))

    def _kept(self, storage: KaraStorage) -> KaraStorage:
        self.opened.append(storage)
        return storage

    def write(self, key: str, rows: list[bytes]) -> None:
        """Straight into the store, in several segments."""
        with self.straight().open_dataset("ns", key, "w", "1", serialization=RAW) as dataset:
            for number, row in enumerate(rows):
                dataset.write(row)
                if number % 1100 == 1099:
                    dataset.flush()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    services.require_module("oss2")
    services.require("etcd")
    options = {**KEYS, "region": "cn-hangzhou"}
    with OssServer(buckets=["bench"]) as server, EtcdServer() as etcd:
        mounts = {"bench": {"url": f"oss://{server.host}/bench", "options": options}}
        with LocalCluster(
            3, mounts=mounts, etcd=etcd, directory=tmp_path_factory.mktemp("cluster")
        ) as cluster:
            made = Site(server, cluster)
            made.write("rows", ROWS)
            yield made
            for storage in made.opened:
                storage.close()


class Rows:
    """Map-style over `read_batch`, as anybody would write it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> bytes:
        return bytes(self.dataset[index])

    def __getitems__(self, indices: list[int]) -> list[bytes]:
        return self.dataset.read_batch(indices)  # type: ignore[no-any-return]


def same(batch: list[bytes]) -> list[bytes]:
    return batch


def epoch(dataset: Any, **options: Any) -> list[bytes]:
    loader = torch_data.DataLoader(
        Rows(dataset), batch_size=64, shuffle=True, num_workers=2, collate_fn=same, timeout=90, **options
    )
    return [row for batch in loader for row in batch]


@pytest.mark.parametrize("local_reads", [True, False])
def test_a_second_shuffled_epoch_asks_the_store_for_nothing(site: Site, local_reads: bool) -> None:
    dataset = site.storage(local_reads=local_reads).open_dataset("ns", "rows", serialization=RAW)
    first = epoch(dataset)
    dataset.read_batch(range(COUNT))  # what was still on its way to a worker's disk is there now
    site.server.requests.clear()
    second = epoch(dataset)
    assert site.server.requests.all() == []
    assert sorted(first) == sorted(second) == sorted(ROWS)
    assert first != second
    dataset.close()


@pytest.mark.parametrize("through", ["cache", "store"])
def test_the_published_shuffle_reads_a_store_in_sequence(site: Site, through: str) -> None:
    from kara_cache import make_torch_dataset

    storage = site.storage() if through == "cache" else site.straight()
    dataset = storage.open_dataset("ns", "rows", serialization=RAW)
    site.server.requests.clear()
    got = list(make_torch_dataset(dataset, shuffle=True, seed=2, buffer_size=500))
    assert got == [ROWS[at] for at in order_of_2(COUNT, seed=2, buffer_size=500)]
    assert list(make_torch_dataset(dataset, begin=5)) == ROWS[5:]
    assert len(site.server.requests.data_gets()) < 100
    assert list(make_torch_dataset(dataset, shuffle=True, buffer_size=10**6)) == [
        ROWS[at] for at in order_of_2(COUNT, buffer_size=10**6)
    ]
    dataset.close()


@pytest.mark.parametrize("through", ["cache", "store"])
def test_an_index_that_is_too_long_to_keep(site: Site, through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are found by a request more; nothing that grows with their number is in memory."""
    monkeypatch.setattr("kara_cache.storage.rows.words.HELD_BYTES", 1000)
    storage = site.storage() if through == "cache" else site.straight()
    dataset = storage.open_dataset("ns", "rows", serialization=RAW)
    reader = dataset._reader()
    assert isinstance(reader._ends, PagedWords)
    assert isinstance(reader._sums, PagedWords)
    indices = [0, COUNT - 1, 5, 0, *random.Random(5).choices(range(COUNT), k=500)]
    assert dataset.read_batch(indices) == [ROWS[i] for i in indices]
    assert [dataset[i] for i in indices[:20]] == [ROWS[i] for i in indices[:20]]
    assert list(dataset) == ROWS
    assert dataset.verify().ok
    assert (len(dataset), dataset.nbytes()) == (COUNT, sum(map(len, ROWS)))
    if through == "cache":
        assert sorted(epoch(dataset)) == sorted(ROWS)
    with site.straight().open_dataset("ns", f"more-{through}", "w", "1", serialization=RAW) as more:
        for row in ROWS[:600]:
            more.write(row)
    with site.straight().open_dataset("ns", f"more-{through}", "w", "1", serialization=RAW) as more:
        more.write(b"the last")
    assert list(site.straight().open_dataset("ns", f"more-{through}", serialization=RAW)) == [
        *ROWS[:600],
        b"the last",
    ]
    dataset.close()


def test_spawned_workers_ask_for_no_more_than_the_version(site: Site) -> None:
    dataset = site.storage().open_dataset("ns", "rows", serialization=RAW)
    assert sorted(epoch(dataset)) == sorted(ROWS)
    site.server.requests.clear()
    assert sorted(epoch(dataset, multiprocessing_context="spawn")) == sorted(ROWS)
    assert site.server.requests.data_gets() == []
    dataset.close()


def test_opening_costs_few_requests_and_rows_come_in_the_order_asked(site: Site) -> None:
    site.storage().open_dataset("ns", "rows", serialization=RAW).read_batch(range(COUNT))
    site.server.requests.clear()
    dataset = site.storage().open_dataset("ns", "rows", serialization=RAW)
    indices = random.Random(5).choices(range(COUNT), k=2000)
    assert dataset.read_batch(indices) == [ROWS[i] for i in indices]
    assert [bytes(dataset[i]) for i in indices[:50]] == [ROWS[i] for i in indices[:50]]
    assert [bytes(row) for row in dataset] == ROWS
    assert site.server.requests.data_gets() == []
    assert len(site.server.requests.all()) <= 12
    dataset.close()


def test_a_worker_that_dies_in_the_middle_of_an_epoch_changes_no_row(site: Site) -> None:
    dataset = site.storage(local_reads=False).open_dataset("ns", "rows", serialization=RAW)
    loader = torch_data.DataLoader(
        Rows(dataset), batch_size=50, shuffle=True, num_workers=2, collate_fn=same, timeout=90
    )
    got: list[bytes] = []
    victim = site.cluster.workers[0]
    for number, batch in enumerate(loader):
        got += batch
        if number == 5:
            victim.kill()
    victim.start()
    assert sorted(got) == sorted(ROWS)
    dataset.close()


def test_a_data_set_that_is_replaced_is_an_error_or_the_old_rows_never_a_mixture(site: Site) -> None:
    old = rows_of(2)[:500]
    site.write("changing", old)
    dataset = site.storage(local_reads=False).open_dataset("ns", "changing", serialization=RAW)
    assert dataset.read_batch([1, 2]) == old[1:3]
    store = site.straight().location.store
    for entry in list(store.list("row/ns/changing/1/data")):
        store.write(entry.path, b"\0" * 10_000_000)
    for at in range(0, 500, 50):
        try:
            got = dataset.read_batch(range(at, at + 50))
        except (KaraError, OSError):
            continue
        assert got == old[at : at + 50]
    dataset.close()


def test_bits_that_flip_in_pages_at_hand_change_no_row(site: Site) -> None:
    """Rows are read from them without the sums of their blocks: their own tell."""
    storage = site.storage()
    dataset = storage.open_dataset("ns", "rows", serialization=RAW)
    for _ in range(2):
        assert dataset.read_batch(range(COUNT)) == ROWS
    client = dataset.version.location.cached.client
    before = client.metrics
    for at, ((_, _, index), page) in enumerate(client._local.pages.items()):
        with open(f"/proc/self/fd/{page.fd}", "r+b", buffering=0) as raw:
            wrong = page.start + (at * 7919 + index) % page.length
            byte = os.pread(raw.fileno(), 1, wrong)
            os.pwrite(raw.fileno(), bytes([byte[0] ^ 0x20]), wrong)
    assert dataset.read_batch(range(COUNT)) == ROWS
    assert [dataset[i] for i in range(0, COUNT, 7)] == ROWS[::7]
    assert client.metrics.fallbacks["corrupt"] > before.fallbacks.get("corrupt", 0)
    dataset.close()
