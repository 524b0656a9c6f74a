"""The examples of the documents about keyed authoring, block after block as they stand there.

And what readers of the published package, and readers through the cache, make of a data set with keys.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from published import python_with
from services import require_module

from kara_cache import KaraStorage, kv
from kara_cache.serialization import MsgpackSerializer
from kara_worker.testing.cluster import LocalCluster

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]
lmdb = require_module("lmdb")
DOCUMENTS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = {
    "kv.md": ("pyarrow",),
    "from-lmdb.md": ("numpy", "torch", "sklearn.datasets"),
    "from-caffe-db.md": (),
    "from-docarray.md": (),
}


def prepare_images(directory: Path) -> None:
    """What docs/from-lmdb.md takes as given: images by label, one more, and somebody else's environment."""
    digits = require_module("sklearn.datasets").load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:200], digits.target[:200], strict=True)):
        place = directory / "digits" / str(label) / f"{number:05}.pgm"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"P5\n8 8\n16\n" + image.astype("uint8").tobytes())
    (directory / "cat.pgm").write_bytes(place.read_bytes())
    pack = MsgpackSerializer().serialize
    with lmdb.open(str(directory / "digits_raw"), map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            for number, label in enumerate(digits.target[:200]):
                transaction.put(f"{number:05}".encode(), pack({"label": int(label)}))


@pytest.mark.parametrize("name", NEEDS)
def test_the_examples_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS[name]:
        require_module(module)
    monkeypatch.chdir(tmp_path)
    if name == "from-lmdb.md":
        prepare_images(tmp_path)
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    names: dict[str, Any] = {"__name__": "example"}
    try:
        for block in blocks:
            line = text[: block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], f"docs/{name}", "exec"), names)
    finally:
        for left in names.values():
            if isinstance(left, (kv.DB, kv.RowTable)):
                with suppress(RuntimeError):
                    left.close()


def published_table(place: Path, storage: KaraStorage, **options: Any) -> list[Any]:
    rows: list[Any] = [{"i": i, "text": "é" * (i % 50)} for i in range(300)]
    with kv.open_table(place, "new") as table:
        table.update((f"key {row['i']}", row) for row in rows)
        kv.publish(table, storage, "ns", "k", "1", **options)
    return rows


READ = """
import json, sys
import kara_storage
dataset = kara_storage.KaraStorage(sys.argv[1]).open_dataset("ns", "k", "r")
print(json.dumps([dataset.read() for _ in range(len(dataset))]))
"""
APPEND = """
import sys
import kara_storage
dataset = kara_storage.KaraStorage(sys.argv[1]).open_dataset("ns", "k", "w")
dataset.write({"i": "theirs"})
dataset.close()
"""


def test_the_published_package_does_not_see_the_keys(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/storage"
    rows = published_table(tmp_path / "db", KaraStorage(url), max_file_size=1000)
    python = python_with("kara-storage==2.1.5")

    def run(code: str) -> str:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", code, url],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(run(READ)) == rows
    run(APPEND)  # a row without a key: the others keep theirs
    with KaraStorage(url).open("ns", "k") as dataset:
        assert (len(dataset), dataset[-1]) == (301, {"i": "theirs"})
        assert dataset["key 299"] == rows[299]
        with pytest.raises(KeyError, match="key 300"):
            dataset["key 300"]


def test_rows_by_key_through_the_cache(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with LocalCluster(2, mounts={"data": f"file://{files}"}) as cluster:
        with KaraStorage(f"kara::file://{files}/db", kara=cluster.client_options) as storage:
            rows = published_table(tmp_path / "table", storage)
            with storage.open("ns", "k") as dataset:
                assert dataset["key 123"] == rows[123]
                assert dataset.keys is not None
                assert list(dataset.keys.keys()) == [f"key {i}" for i in range(300)]
                assert dataset.keys.find_many(["key 7", "none", "key 0"]) == [7, None, 0]
    assert struct.unpack("<8sH", (files / "db/row/ns/k/1/keys/rows.keys").read_bytes()[:10]) == (
        b"KARAKEYS",
        1,
    )
