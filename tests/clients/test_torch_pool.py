"""kara-storage's shuffle over rows that are read in passing, and over rows that lie in a mapping."""

from __future__ import annotations

import threading
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import require_module

torch = require_module("torch")

from kara_cache import KaraStorage  # noqa: E402
from kara_cache.errors import FormatError  # noqa: E402
from kara_cache.sampling import order_of_2  # noqa: E402
from kara_cache.serialization import NoSerializer  # noqa: E402
from kara_cache.storage.rows.row_dataset import RowDataset  # noqa: E402
from kara_cache.torch import RowStream, make_torch_dataset  # noqa: E402
from kara_cache.torch.pooled_rows import Pool  # noqa: E402

pytestmark = pytest.mark.clients
COUNT = 400


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> KaraStorage:
    return KaraStorage(f"file://{tmp_path_factory.mktemp('rows')}")


def written(storage: KaraStorage, key: str, rows: list[Any], **options: Any) -> None:
    with storage.open_dataset("test", key, "w", "1", **options) as dataset:
        for row in rows:
            dataset.write(row)


@pytest.fixture(scope="module")
def rows(storage: KaraStorage) -> RowDataset:
    written(storage, "json", [{"number": number} for number in range(COUNT)])
    return storage.open_dataset("test", "json", buffer_size=300)  # many reads


@given(
    window=st.tuples(st.integers(0, COUNT), st.integers(0, COUNT)).map(lambda ends: range(*sorted(ends))),
    seed=st.integers(-3, 50),
    epoch=st.integers(0, 9),
    buffer_size=st.integers(1, 500),
)
@settings(max_examples=60)
def test_a_pool_of_rows_is_the_pool_of_numbers(
    rows: RowDataset, window: range, seed: int, epoch: int, buffer_size: int
) -> None:
    pool = Pool(seed, buffer_size)
    got = [row["number"] for row in pool.pass_over(rows, window, epoch=epoch)]
    order = order_of_2(len(window), seed=seed, epoch=epoch, buffer_size=buffer_size)
    assert got == [window[at] for at in order]


def test_a_row_that_cannot_be_read_is_named_when_its_turn_comes(storage: KaraStorage) -> None:
    made = [b'{"number":%d}' % number for number in range(COUNT)]
    made[57] = b"{no JSON}"
    written(storage, "broken", made, serialization=NoSerializer())
    dataset = storage.open_dataset("test", "broken", buffer_size=300)
    order = list(order_of_2(COUNT - 50, seed=4, buffer_size=30))
    good = order.index(7)
    source = Pool(4, 30).pass_over(dataset, range(50, COUNT), epoch=0)
    assert [row["number"] for row in islice(source, good)] == [50 + at for at in order[:good]]
    with pytest.raises(FormatError, match="row 57 cannot be read"):
        next(source)


def test_a_mapping_is_read_without_a_thread(rows: RowDataset) -> None:
    before = set(threading.enumerate())
    for data in (make_torch_dataset(rows, shuffle=True), make_torch_dataset(rows), RowStream(rows)):
        source = iter(data)
        got = [next(source)["number"]]
        assert set(threading.enumerate()) <= before
        got += [row["number"] for row in source]
        assert sorted(got) == list(range(COUNT))


def test_rows_that_are_larger_than_one_read(storage: KaraStorage) -> None:
    written(
        storage, "large", [bytes([number]) * (3 << 20) for number in range(4)], serialization=NoSerializer()
    )
    dataset = storage.open_dataset("test", "large", serialization=NoSerializer())
    assert [row[0] for row in make_torch_dataset(dataset, shuffle=True)] == list(order_of_2(4))
