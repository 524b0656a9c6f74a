"""The examples of docs/fsspec.md, run as they stand there."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounted import Mounted, mounted
from services import require_module

pytestmark = pytest.mark.clients
DOCUMENT = Path(__file__).parents[2] / "docs" / "fsspec.md"
EXAMPLES = dict(
    re.findall(r"### ([^\n]+)\n(?:(?!###).)*?```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
)
NEEDS = {
    "pandas": ("pandas", "pyarrow"),
    "pyarrow": ("pyarrow",),
    "DuckDB": ("duckdb",),
    "Hugging Face datasets": ("datasets",),
    "zarr": ("zarr",),
    "numpy": ("numpy",),
    "torch": ("torch",),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """What the examples read, in the mount that they call `data`."""
    with mounted(tmp_path_factory.mktemp("docs")) as found:
        _parquet(found.directory)
        for i in range(130):
            image = found.directory / "images" / str(i % 3) / f"{i}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(str(i).encode())
        np, zarr, torch = (require_module(name) for name in ("numpy", "zarr", "torch"))
        zarr.save_array(str(found.directory / "array.zarr"), np.arange(1000).reshape(100, 10))
        torch.save({"step": 3}, found.directory / "state.pt")
        vectors = array("f", range(2000)).tobytes()
        (found.directory / "vectors.f32").write_bytes(vectors)
        yield found


def _parquet(directory: Path) -> None:
    pa, parquet, dataset = (require_module(f"pyarrow{name}") for name in ("", ".parquet", ".dataset"))
    table = pa.table({"label": [1, 2, 2], "week": [3, 3, 4]})
    parquet.write_table(table, directory / "train.parquet")
    (directory / "train").mkdir()
    parquet.write_table(table, directory / "train" / "0.parquet")
    options: Any = {"format": "parquet", "partitioning": ["week"], "partitioning_flavor": "hive"}
    dataset.write_dataset(table, directory / "set", **options)


EXPECTED: dict[str, Any] = {
    "pandas": lambda names: names["frame"]["label"].tolist() == [1, 2, 2],
    "pyarrow": lambda names: names["table"].num_rows == 2,
    "DuckDB": lambda names: sorted(names["counts"]) == [(1, 1), (2, 2)],
    "Hugging Face datasets": lambda names: names["first"] == {"label": 1, "week": 3},
    "zarr": lambda names: names["part"].shape == (10, 5) and names["part"][0, 0] == 100,
    "numpy": lambda names: names["vectors"].shape == (100, 10) and names["vectors"][0, 0] == 100,
    "torch": lambda names: (
        names["state"] == {"step": 3} and sorted(map(int, names["images"])) == list(range(130))
    ),
}


def test_every_example_is_run() -> None:
    assert set(EXAMPLES) == set(EXPECTED) == set(NEEDS)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_example(files: Mounted, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name == "Hugging Face datasets":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when the library is imported
        config = require_module("datasets").config
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path)
    for module in NEEDS[name]:
        require_module(module)
    names: dict[str, Any] = {"OPTIONS": files.options, "__name__": "example"}
    exec(compile(EXAMPLES[name], f"{DOCUMENT}, {name}", "exec"), names)
    assert EXPECTED[name](names)
