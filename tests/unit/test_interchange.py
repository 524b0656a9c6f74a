"""Each format in and out, damage, and targets that must not be touched."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache import KaraStorage, kv
from kara_cache.errors import ConfigError
from kara_cache.serialization import MsgpackSerializer, NoSerializer
from kara_cache.storage.interchange import KINDS, export_rows, import_rows
from kara_cache.storage.rows.row_dataset import RowDataset

lmdb = pytest.importorskip("lmdb")
PNG = b"\x89PNG\r\n\x1a\n pixels"
JSON_ROWS: list[Any] = [{"i": i, "text": f"t\n{i}", "deep": {"x": [i]}} for i in range(2500)]
SAMPLES: list[Any] = [
    {
        "__key__": f"train/{i:05}",
        "jpg": b"\xff\xd8" + bytes([i % 256]),
        "cls": i % 7,
        "json": {"i": i},
        "txt": "é",
    }
    for i in range(50)
]
IMAGES: list[Any] = [
    {"path": f"{kind}/{i}.png", "label": kind, "image": PNG + bytes([i])}
    for kind in ("cat", "dog")
    for i in range(5)
]
VALUES: list[Any] = [b"value %d" % i for i in range(50)]
ROWS: dict[str, list[Any]] = {
    "jsonl": JSON_ROWS,
    "parquet": JSON_ROWS,
    "webdataset": SAMPLES,
    "images": IMAGES,
    "lmdb": VALUES,
}
KEYED = {"webdataset", "images", "lmdb"}


@pytest.fixture
def storage(tmp_path: Path) -> KaraStorage:
    return KaraStorage(f"file://{tmp_path}/storage")


def serializer(kind: str) -> Any:
    return NoSerializer() if kind == "lmdb" else MsgpackSerializer()


def written(storage: KaraStorage, rows: list[Any], kind: str) -> RowDataset:
    with storage.open("ns", "source", "w", "1", serialization=serializer(kind)) as dataset:
        for row in rows:
            dataset.write(row)
    return storage.open("ns", "source", serialization=serializer(kind))


def needs_library_of(kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")


def test_every_kind_is_tested() -> None:
    assert set(ROWS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_in_again(kind: str, storage: KaraStorage, tmp_path: Path) -> None:
    needs_library_of(kind)
    seen: list[tuple[int, int | None]] = []
    rows = ROWS[kind]
    with written(storage, rows, kind) as source:
        target = tmp_path / "out"
        assert export_rows(source, kind, target, progress=lambda *at: seen.append(at)) == len(rows)
        assert seen == [(i, len(rows)) for i in range(1, len(rows) + 1)]
        with pytest.raises(FileExistsError, match="replaces nothing"):
            export_rows(source, kind, target)
    seen.clear()
    with storage.open("ns", "copy", "w", "1", serialization=serializer(kind)) as copy:
        assert import_rows(target, kind, copy, progress=lambda *at: seen.append(at)) == len(rows)
    assert [done for done, _ in seen] == [*range(1, len(rows) + 1)]
    assert {total for _, total in seen} == ({None} if kind in ("jsonl", "webdataset") else {len(rows)})
    with storage.open("ns", "copy", serialization=serializer(kind)) as copy:
        assert list(copy) == rows
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


@pytest.mark.parametrize("kind", sorted(KEYED))
def test_tables_keep_keys(kind: str, storage: KaraStorage, tmp_path: Path) -> None:
    with written(storage, ROWS[kind], kind) as source:
        export_rows(source, kind, tmp_path / "out")
    with kv.open_table(tmp_path / "table", "new", serialization=serializer(kind)) as table:
        import_rows(tmp_path / "out", kind, table)
        import_rows(tmp_path / "out", kind, table)  # the same rows again: nothing is doubled
        assert list(table) == ROWS[kind]
        key = {"webdataset": "train/00007", "images": "dog/2.png", "lmdb": "0000000007"}[kind]
        assert table[key] == ROWS[kind][7]
        export_rows(table, kind, tmp_path / "again")
        keys = list(table.keys())
        kv.publish(table, storage, "ns", "published", "1")
    with kv.open_table(tmp_path / "table2", "new", serialization=serializer(kind)) as table:
        import_rows(tmp_path / "again", kind, table)
        assert list(table.keys()) == keys
    with storage.open("ns", "published", serialization=serializer(kind)) as published:
        assert published[key] == ROWS[kind][7]
        export_rows(published, kind, tmp_path / "third")
    with kv.open_table(tmp_path / "table3", "new", serialization=serializer(kind)) as table:
        import_rows(tmp_path / "third", kind, table)
        assert list(table.keys()) == keys


def test_an_lmdb_environment_of_json(tmp_path: Path, storage: KaraStorage) -> None:
    with lmdb.open(str(tmp_path / "env"), map_size=1 << 24) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"\xff\x00", b'{"i": 2}')
            transaction.put(b"a", b'{"i": 1}')
    with kv.open_table(tmp_path / "table", "new") as table:
        assert import_rows(tmp_path / "env", "lmdb", table) == 2
        assert dict(table.items()) == {"a": {"i": 1}, "ff00": {"i": 2}}
    with storage.open("ns", "k", "w", "1") as writer:
        import_rows(tmp_path / "env", "lmdb", writer)
    assert list(storage.open("ns", "k")) == [{"i": 1}, {"i": 2}]


def test_named_tables_are_said(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        db.table("images")
    with kv.open_table(tmp_path / "table", "new") as table, pytest.raises(ValueError, match="tables images"):
        import_rows(tmp_path / "db", "lmdb", table)


def test_parquet_columns_of_later_rows(tmp_path: Path, storage: KaraStorage) -> None:
    pytest.importorskip("pyarrow")
    rows: list[Any] = [{"a": 1, "n": None} for _ in range(1500)]
    rows += [{"a": 1.5, "b": "new", "n": 3, "s": {"x": 1}}, {"a": 2, "s": {"y": [2]}}]
    with written(storage, rows, "parquet") as source:
        export_rows(source, "parquet", tmp_path / "out.parquet")
    with storage.open("ns", "copy", "w", "1") as copy:
        import_rows(tmp_path, "parquet", copy)  # a directory of them
    found = list(storage.open("ns", "copy"))
    assert found[0] == {"a": 1, "n": None, "b": None, "s": None}
    assert found[-2:] == [
        {"a": 1.5, "n": 3, "b": "new", "s": {"x": 1, "y": None}},
        {"a": 2, "n": None, "b": None, "s": {"x": None, "y": [2]}},
    ]
    with written(storage, [{"a": 1}, {"a": "text"}], "parquet") as source:
        source.close()
    with storage.open("ns", "mixed", "w", "1") as mixed:
        mixed.write({"a": {"x": 1}})
        mixed.write({"a": "text"})
    with pytest.raises(ValueError, match="rows 0 to 1: columns do not fit"):
        export_rows(storage.open("ns", "mixed"), "parquet", tmp_path / "mixed.parquet")
    assert not (tmp_path / "mixed.parquet").exists()


def test_webdataset_reads_what_others_write(tmp_path: Path, storage: KaraStorage) -> None:
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as tar:
        for name, content in [
            ("d", None),
            ("d/1.jpg", b"j"),
            ("d/1.seg.PNG", b"p"),
            ("README", b"x"),
            ("d/2.cls", b"7"),
        ]:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    with storage.open("ns", "k", "w", "1", serialization=MsgpackSerializer()) as writer:
        assert import_rows(tmp_path, "webdataset", writer) == 2
    assert list(storage.open("ns", "k", serialization=MsgpackSerializer())) == [
        {"__key__": "d/1", "jpg": b"j", "seg.png": b"p"},
        {"__key__": "d/2", "cls": 7},
    ]


class Rows(list[Any]):
    """As a data set."""


BAD_SOURCES: dict[str, tuple[str, Callable[[Path], Path], type[Exception], str]] = {
    "jsonl cut": ("jsonl", lambda d: _file(d, b'{"a": 1}\n{"a"'), ValueError, "line 2"),
    "jsonl missing": ("jsonl", lambda d: d / "none", FileNotFoundError, "none"),
    "parquet": ("parquet", lambda d: _file(d, b"not parquet at all"), ValueError, "source: "),
    "parquet directory": ("parquet", lambda d: d, FileNotFoundError, r"without \*.parquet"),
    "tar": ("webdataset", lambda d: _file(d, b"x" * 600), ValueError, "source: "),
    "tar directory": ("webdataset", lambda d: d, FileNotFoundError, r"without \*.tar"),
    "images": ("images", lambda d: d, FileNotFoundError, "without images"),
    "images file": ("images", lambda d: _file(d, b""), FileNotFoundError, "not a directory"),
    "lmdb": ("lmdb", lambda d: d, FileNotFoundError, r"without data\.mdb"),
    "kind": ("csv", lambda d: d, ConfigError, "known are jsonl, parquet"),
}


def _file(directory: Path, content: bytes) -> Path:
    (directory / "source").write_bytes(content)
    return directory / "source"


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_sources_that_are_refused(name: str, tmp_path: Path) -> None:
    kind, make, error, said = BAD_SOURCES[name]
    needs_library_of(kind)
    (tmp_path / "in").mkdir()
    with kv.open_table(tmp_path / "table", "new") as table, pytest.raises(error, match=said):
        import_rows(make(tmp_path / "in"), kind, table)


BAD_ROWS: dict[str, tuple[str, Any, type[Exception], str]] = {
    "jsonl bytes": ("jsonl", {"a": b"x"}, TypeError, "row 1: JSON"),
    "parquet scalar": ("parquet", 3, TypeError, "row 1: a row of parquet is a dict, got int"),
    "tar scalar": ("webdataset", [1], TypeError, "row 1: a sample is a dict"),
    "tar dot": ("webdataset", {"__key__": "a.b", "jpg": b""}, ValueError, "'a.b' has a dot"),
    "tar hostile": ("webdataset", {"__key__": "../a", "jpg": b""}, ValueError, r"\.\."),
    "tar type": ("webdataset", {"__key__": "a", "jpg": 3}, TypeError, "a.jpg: a file in a tar is bytes"),
    "tar empty": ("webdataset", {"__key__": "a"}, ValueError, "without fields"),
    "image hostile": ("images", {"path": "../../x.png", "image": PNG}, ValueError, r"\.\."),
    "image absolute": ("images", {"path": "/x.png", "image": PNG}, ValueError, "row 1"),
    "image twice": ("images", {"path": "cat/0.png", "image": PNG}, ValueError, "an earlier row"),
    "image missing": ("images", {"path": "a.png"}, TypeError, "'image'"),
    "lmdb object": ("lmdb", {"a": 1}, TypeError, "got dict"),
}
FIRST: dict[str, Any] = {
    "jsonl": {},
    "parquet": {"a": 1},
    "webdataset": {"__key__": "0", "jpg": b""},
    "images": {"path": "cat/0.png", "image": PNG},
    "lmdb": b"",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_do_not_fit(name: str, tmp_path: Path) -> None:
    kind, row, error, said = BAD_ROWS[name]
    needs_library_of(kind)
    with pytest.raises(error, match=said):
        export_rows(Rows([FIRST[kind], row]), kind, tmp_path / "deep" / "out")
    assert not (tmp_path / "x.png").exists()
    if kind not in ("images", "lmdb"):
        assert list(tmp_path.rglob("*.*")) == []


def test_images_without_paths(tmp_path: Path) -> None:
    rows = Rows([{"image": PNG, "label": 3}, {"image": b"\xff\xd8\xff"}, {"image": b"?"}])
    export_rows(rows, "images", tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["00000001.jpg", "00000002.bin", "3/00000000.png"]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(rows=st.lists(VALUE, max_size=6))
def test_json_lines_of_any_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    target = tmp_path_factory.mktemp("jsonl") / "out.jsonl"
    export_rows(Rows(rows), "jsonl", target)
    assert [json.loads(line) for line in target.read_bytes().splitlines()] == rows
    found: list[Any] = []

    class Sink:
        def write(self, row: Any) -> None:
            found.append(row)

    assert import_rows(target, "jsonl", Sink()) == len(rows)
    assert found == rows


def test_nothing_is_read_ahead(tmp_path: Path) -> None:
    """A source of any size takes no more memory than a transaction of rows."""
    ahead = 0

    def rows() -> Iterator[Any]:
        nonlocal ahead
        for i in range(5000):
            ahead += 1
            yield {"i": i}

    class Lazy(Rows):
        def __iter__(self) -> Iterator[Any]:
            return rows()

        def __len__(self) -> int:
            return 5000

    most = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal most
        most = max(most, ahead - done)

    export_rows(Lazy(), "jsonl", tmp_path / "out", progress=progress)
    assert most <= 1
