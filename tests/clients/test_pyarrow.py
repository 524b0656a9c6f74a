from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
pa = require_module("pyarrow")
dataset = require_module("pyarrow.dataset")
pafs = require_module("pyarrow.fs")
parquet = require_module("pyarrow.parquet")

Place = tuple[str, Path]


@pytest.fixture
def table() -> object:
    return pa.table({"number": list(range(3000)), "part": [i % 3 for i in range(3000)]})


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_partitioned_dataset(kara: Mounted, place: Place, table: Any, wrapped: bool) -> None:
    url, directory = place
    fs: Any = kara.filesystem()
    name = fs._strip_protocol(url)
    if wrapped:
        fs = pafs.PyFileSystem(pafs.FSSpecHandler(fs))
    options: Any = {"format": "parquet", "partitioning": ["part"], "partitioning_flavor": "hive"}
    dataset.write_dataset(table, f"{name}/set", filesystem=fs, **options)
    assert sorted(path.name for path in (directory / "set").iterdir()) == ["part=0", "part=1", "part=2"]
    found = dataset.dataset(f"{name}/set", filesystem=fs, partitioning="hive")
    some = found.to_table(filter=dataset.field("part") == 1, columns=["number"])
    assert sorted(some["number"].to_pylist()) == list(range(1, 3000, 3))
    assert parquet.read_table(f"{name}/set", filesystem=fs).num_rows == 3000


def test_file_facts_and_streams(kara: Mounted, place: Place) -> None:
    _, directory = place
    (directory / "f").write_bytes(b"0123456789" * 1000)
    fs = pafs.PyFileSystem(pafs.FSSpecHandler(kara.filesystem()))
    info = fs.get_file_info(f"data/{directory.name}/f")
    assert (info.type, info.size) == (pafs.FileType.File, 10_000)
    selector = pafs.FileSelector(f"data/{directory.name}", recursive=True)
    assert [found.base_name for found in fs.get_file_info(selector)] == ["f"]
    assert fs.get_file_info(f"data/{directory.name}/none").type == pafs.FileType.NotFound
    with fs.open_input_file(f"data/{directory.name}/f") as file:
        assert file.size() == 10_000
        assert file.read_at(10, 25) == b"5678901234"
    with fs.open_output_stream(f"data/{directory.name}/g") as out:
        out.write(b"written")
    assert (directory / "g").read_bytes() == b"written"
