from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
np = require_module("numpy")
zarr = require_module("zarr")
storage = require_module("zarr.storage")


def test_arrays_through_the_store(kara: Mounted, place: tuple[str, Path]) -> None:
    url, directory = place
    store: Any = storage.FsspecStore.from_url(f"{url}/array", storage_options=kara.options)
    written = np.arange(100 * 120, dtype="i4").reshape(100, 120)
    zarr.create_array(store, shape=written.shape, chunks=(10, 40), dtype="i4")[:] = written
    assert (directory / "array" / "zarr.json").is_file()
    readable: Any = storage.FsspecStore.from_url(f"{url}/array", storage_options=kara.options, read_only=True)
    array = zarr.open_array(readable, mode="r")
    assert (array[:] == written).all()
    assert (array[13:57, 5:99] == written[13:57, 5:99]).all()


def test_a_group_through_an_instance(kara: Mounted, place: tuple[str, Path]) -> None:
    url, _ = place
    fs = kara.filesystem()
    store = storage.FsspecStore.from_mapper(fs.get_mapper(f"{url}/group"))
    root = zarr.create_group(store)
    root.create_array("a", data=np.ones(10))
    root.create_group("deeper").attrs["note"] = "found"
    again = zarr.open_group(storage.FsspecStore.from_mapper(fs.get_mapper(f"{url}/group")), mode="r")
    assert sorted(again.keys()) == ["a", "deeper"]
    assert again["deeper"].attrs["note"] == "found"
