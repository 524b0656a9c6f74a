from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
os.environ["HF_HUB_OFFLINE"] = "1"  # read by the library when it is imported
datasets = require_module("datasets")
pa = require_module("pyarrow")
parquet = require_module("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("chained", [False, True])
def test_streaming_parquet(kara: Mounted, place: tuple[str, Path], chained: bool) -> None:
    url, directory = place
    for part in range(2):
        rows = list(range(part * 100, part * 100 + 100))
        parquet.write_table(pa.table({"row": rows}), directory / f"{part}.parquet")
    options = dict(kara.options)
    if chained:  # datasets passes one flat mapping, so the store's scheme stands in it
        url, options = f"kara:/{directory}", {**options, "target_protocol": "file"}
    found: Any = datasets.load_dataset(
        "parquet", data_files=f"{url}/*.parquet", split="train", streaming=True, storage_options=options
    )
    assert [row["row"] for row in found] == list(range(200))


def test_saved_datasets(kara: Mounted, place: tuple[str, Path]) -> None:
    url, directory = place
    rows = datasets.Dataset.from_dict({"row": list(range(200))})
    rows.save_to_disk(f"{url}/saved", storage_options=kara.options)
    assert (directory / "saved" / "dataset_info.json").is_file()
    again = datasets.load_from_disk(f"{url}/saved", storage_options=kara.options)
    assert again["row"][:] == list(range(200))
