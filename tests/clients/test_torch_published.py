"""`make_torch_dataset` beside the published kara-storage 2.1.5, in an environment of its own.

That one needs torch for two names only: the base class of its data set, and `torch.distributed`. A stand-in
of twenty lines gives it both, and lets a test say which rank it is; the orders are made by its own code.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from published import python_with
from services import require_module

torch = require_module("torch")

import kara_cache  # noqa: E402
from kara_cache.torch import MemoryRows, PublishedOrder, make_torch_dataset  # noqa: E402

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(400),  # workers that are spawned load torch, each for itself
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*suggested max number of worker:UserWarning"),
]
DataLoader = torch.utils.data.DataLoader

STAND_IN = {
    "torch/__init__.py": "",
    "torch/utils/__init__.py": "",
    "torch/utils/data.py": "class IterableDataset:\n    pass\n",
    "torch/distributed.py": """
rank, world_size = 0, 0
def is_initialized(): return world_size > 0
def get_rank(): return rank
def get_world_size(): return world_size
""",
}
THEIRS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch.distributed, kara_storage
cases, directory = json.load(sys.stdin), sys.argv[1]
storage = kara_storage.KaraStorage("file://" + directory)
written, orders = set(), []
for case in cases:
    rows, name = case["rows"], "rows%d" % case["rows"]
    if rows not in written:
        written.add(rows)
        with_rows = storage.open_dataset("test", name, "w", version="1")
        for row in range(rows):
            with_rows.write(row)
        with_rows.close()
    torch.distributed.rank, torch.distributed.world_size = case["rank"], case["world_size"]
    data = kara_storage.make_torch_dataset(storage.open_dataset("test", name, "r"), **case["arguments"])
    data.set_epoch(case["epoch"])
    orders.append(list(data))
print(json.dumps(orders))
"""


def cases() -> Iterator[dict[str, Any]]:
    for rows in (0, 1, 2, 7, 64, 257):
        for arguments in (
            {},
            {"shuffle": True},
            {"shuffle": True, "seed": 3},
            {"shuffle": True, "seed": 3, "buffer_size": 1},
            {"shuffle": True, "seed": 10**9, "buffer_size": 5},
            {"shuffle": True, "buffer_size": 64},
            {"shuffle": True, "seed": -2, "buffer_size": 1000},
        ):
            for epoch in (0, 1, 12):
                for rank, world_size in ((0, 0), (0, 1), (0, 3), (2, 3), (4, 5)):
                    yield {
                        "rows": rows,
                        "arguments": arguments,
                        "epoch": epoch,
                        "rank": rank,
                        "world_size": world_size,
                    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    directory = tmp_path_factory.mktemp("published")
    for name, text in STAND_IN.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    python = python_with("kara-storage==2.1.5")
    done = subprocess.run(
        [python, "-c", THEIRS, directory / "data"],
        input=json.dumps(list(cases())),
        env={"PYTHONPATH": str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=directory,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def be_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: world_size > 0)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)


def test_the_same_orders(published: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    for case, want in zip(cases(), published, strict=True):
        be_rank(monkeypatch, case["rank"], case["world_size"])
        data = make_torch_dataset(MemoryRows(range(case["rows"])), **case["arguments"])
        data.set_epoch(case["epoch"])
        assert list(data) == want, case
        assert len(data) == len(want)


def test_rows_of_a_split_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(3):
        be_rank(monkeypatch, rank, 3)
        rows = MemoryRows(range(11))
        parts += list(make_torch_dataset(rows))
        assert list(make_torch_dataset(rows)) == parts[-3:], "the caller's rows are not cut"
        assert list(make_torch_dataset(rows, auto_distributed=False)) == list(range(11))
    assert parts == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_passes_begin_anew() -> None:
    data = make_torch_dataset(MemoryRows(range(100)), shuffle=True, buffer_size=10)
    whole = list(data)
    assert next(iter(data)) == whole[0]
    assert list(data) == whole
    data.set_epoch(1)
    assert sorted(data) == list(range(100))
    assert list(data) != whole


def test_the_ratio_of_1() -> None:
    of_1 = partial(make_torch_dataset, MemoryRows(range(50)), shuffle=True, buffer_size=10)
    data = of_1(shuffle_ratio=0.3, seed=2)
    assert sorted(data) == list(range(50))
    assert max(row - at for at, row in enumerate(data)) <= 10
    with pytest.raises(ValueError, match="Shuffle ratio is too small"):
        of_1(shuffle_ratio=0.1)


@pytest.mark.parametrize(
    ("begin", "end", "want"),
    [(0, None, range(10)), (3, 5, range(3, 5)), (8, 99, range(8, 10)), (4, 4, []), (12, None, [])],
)
def test_a_window(begin: int, end: int | None, want: Any) -> None:
    data = make_torch_dataset(MemoryRows(range(10)), begin=begin, end=end)
    assert list(data) == list(want)
    assert len(data) == len(want)
    shuffled = make_torch_dataset(MemoryRows(range(10)), shuffle=True, begin=begin, end=end)
    assert sorted(shuffled) == list(want)


@pytest.mark.parametrize(("begin", "end"), [(-1, None), (3, 2), (0, -1)])
def test_no_window(begin: int, end: int | None) -> None:
    with pytest.raises(ValueError, match="0 <= begin <= end"):
        make_torch_dataset(MemoryRows(range(10)), begin=begin, end=end)


def test_unknown_and_useless_arguments() -> None:
    wrong: Any = {"shufle": True}
    with pytest.raises(TypeError, match="'shufle'"):
        make_torch_dataset(MemoryRows([]), **wrong)
    with pytest.raises(TypeError, match="seed, buffer_size: only with shuffle=True"):
        make_torch_dataset(MemoryRows([]), seed=1, buffer_size=5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_torch_dataset(MemoryRows([]), shuffle=True, buffer_size=0)


def as_it_is(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize(
    ("method", "workers"),
    [("fork", 1), ("fork", 2), ("fork", 3), pytest.param("spawn", 2, marks=pytest.mark.slow)],
)
def test_loader_workers(method: str, workers: int) -> None:
    """The published package: with two workers or more the order depends on their speed."""
    data = make_torch_dataset(MemoryRows(range(60)), shuffle=True, seed=4, buffer_size=20)
    alone = list(data)
    loader = partial(
        DataLoader,
        data,
        batch_size=8,
        num_workers=workers,
        multiprocessing_context=method,
        collate_fn=as_it_is,
    )
    first = [row for batch in loader() for row in batch]
    assert sorted(first) == list(range(60))
    data.batch_size = 8
    persistent = loader(persistent_workers=True, timeout=300)
    for epoch in (0, 5):
        data.set_epoch(epoch)
        assert [row for batch in persistent for row in batch] == list(data)
    assert (workers > 1) or first == alone


def test_where_it_is_found() -> None:
    assert kara_cache.make_torch_dataset is make_torch_dataset
    data = make_torch_dataset(MemoryRows(range(10)), begin=2)
    assert isinstance(data, PublishedOrder)
    assert repr(data) == "<PublishedOrder of rows 2 to 9>"
    with pytest.raises(AttributeError, match="'kara_cache' has no attribute 'nothing'"):
        kara_cache.nothing  # noqa: B018


def test_the_stand_in_says_what_torch_does() -> None:
    assert hasattr(torch.utils.data, "IterableDataset")
    assert {"is_initialized", "get_rank", "get_world_size"} <= set(dir(torch.distributed))
