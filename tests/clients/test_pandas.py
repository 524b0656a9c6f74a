from __future__ import annotations

from pathlib import Path

import pytest
from mounted import Mounted
from services import require_module

pytestmark = pytest.mark.clients
pd = require_module("pandas")
require_module("pyarrow")

Place = tuple[str, Path]


@pytest.fixture
def frame() -> object:
    return pd.DataFrame({"number": range(10_000), "text": [f"row {i}" for i in range(10_000)]})


@pytest.mark.parametrize("slashes", ["kara://", "kara:///"], ids=["two", "three"])
def test_parquet(kara: Mounted, place: Place, frame: pd.DataFrame, slashes: str) -> None:
    url, directory = place
    frame.to_parquet(directory / "x.parquet")
    url = url.replace("kara://", slashes)
    read = pd.read_parquet(f"{url}/x.parquet", storage_options=kara.options)
    pd.testing.assert_frame_equal(read, frame)
    column = pd.read_parquet(f"{url}/x.parquet", storage_options=kara.options, columns=["number"])
    pd.testing.assert_frame_equal(column, frame[["number"]])


def test_parquet_of_a_chained_url(kara: Mounted, place: Place, frame: pd.DataFrame) -> None:
    _, directory = place
    frame.to_parquet(directory / "x.parquet")
    read = pd.read_parquet(
        f"kara::file://{directory}/x.parquet", storage_options={"kara": kara.options, "file": {}}
    )
    pd.testing.assert_frame_equal(read, frame)


def test_csv_and_json_there_and_back(kara: Mounted, place: Place, frame: pd.DataFrame) -> None:
    url, directory = place
    frame.to_csv(f"{url}/x.csv", index=False, storage_options=kara.options)
    frame.to_json(f"{url}/x.json.gz", storage_options=kara.options)
    frame.to_parquet(f"{url}/x.parquet", storage_options=kara.options)
    assert {path.name for path in directory.iterdir()} == {"x.csv", "x.json.gz", "x.parquet"}
    pd.testing.assert_frame_equal(pd.read_csv(f"{url}/x.csv", storage_options=kara.options), frame)
    pd.testing.assert_frame_equal(pd.read_json(f"{url}/x.json.gz", storage_options=kara.options), frame)
    pd.testing.assert_frame_equal(pd.read_parquet(directory / "x.parquet"), frame)


def test_a_frame_that_fails_to_be_written_leaves_the_old_one(kara: Mounted, place: Place) -> None:
    url, directory = place
    (directory / "x.csv").write_text("old\n")

    class Unwritable:
        def __str__(self) -> str:
            raise RuntimeError("on purpose")

    broken = pd.DataFrame({"column": ["x" * 100] * 1000 + [Unwritable()]})
    with pytest.raises(RuntimeError, match="on purpose"):
        broken.to_csv(f"{url}/x.csv", storage_options=kara.options, chunksize=10)
    assert (directory / "x.csv").read_text() == "old\n"
