"""The keyed database: transactions, cursors, tables, growth, refusals."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache import kv
from kara_cache.errors import FormatError
from kara_cache.storage.kv.journal import Journal

lmdb = pytest.importorskip("lmdb")
WAIT_S = 30


@pytest.fixture
def db(tmp_path: Path) -> Iterator[kv.DB]:
    with kv.open(tmp_path / "db", "new") as opened:
        yield opened


def put(db: kv.DB, **records: str) -> None:
    with db.transaction() as transaction:
        for key, value in records.items():
            transaction.put(key, value.encode())


def in_thread(act: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(act())
        except Exception as exc:
            results.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    return results[0]


# -- transactions


def test_a_transaction_is_all_or_nothing(db: kv.DB) -> None:
    put(db, a="1")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        with db.transaction() as transaction:
            transaction.put("b", b"2")
            transaction.delete("a")
            _ = 1 / 0
    assert dict(db) == {b"a": b"1"}
    with db.transaction() as transaction:
        transaction.put("b", b"2")
        transaction.abort()
    assert dict(db) == {b"a": b"1"}
    with db.transaction() as transaction:
        transaction.put(b"b", bytearray(b"2"))
        assert transaction.get("b") == b"2"
        assert db.get("b") is None  # not committed yet
        assert transaction.delete("a")
        assert not transaction.delete("a")
        transaction.commit()
        transaction.commit()
    assert dict(db) == {b"b": b"2"}
    with pytest.raises(ValueError, match="has ended"):
        transaction.put("c", b"3")


def test_put_can_leave_what_is_there(db: kv.DB) -> None:
    with db.transaction() as transaction:
        assert transaction.put("a", b"1", overwrite=False)
        assert not transaction.put("a", b"2", overwrite=False)
        assert transaction.put("a", b"3")
    assert db.get("a") == b"3"
    assert "a" in db
    assert "b" not in db
    assert 7 not in db


def test_clear_leaves_an_empty_table(db: kv.DB) -> None:
    put(db, a="1", b="2")
    with db.transaction() as transaction:
        transaction.clear()
        transaction.put("c", b"3")
    assert dict(db) == {b"c": b"3"}


def test_values_are_any_contiguous_buffer(db: kv.DB) -> None:
    numpy = pytest.importorskip("numpy")
    image = numpy.arange(12, dtype="int16").reshape(3, 4)
    with db.transaction() as transaction:
        transaction.put("image", image)
        transaction.put("empty", b"")
        with pytest.raises(TypeError, match="contiguous"):
            transaction.put("turned", image.T)
    assert (numpy.frombuffer(db.get("image"), "int16").reshape(3, 4) == image).all()
    assert db.get("empty") == b""


@pytest.mark.parametrize(
    ("key", "value", "kind", "said"),
    [
        ("x" * 512, b"", ValueError, "1 to 511 bytes, got 512"),
        ("é" * 256, b"", ValueError, "got 512"),
        ("", b"", ValueError, "got 0"),
        (1, b"", TypeError, "bytes or str, got int"),
        ("a", "text", TypeError, "encode it"),
        ("a", 1, TypeError, "got int"),
    ],
)
def test_what_cannot_be_put(db: kv.DB, key: Any, value: Any, kind: type[Exception], said: str) -> None:
    with db.transaction() as transaction:
        transaction.put("before", b"1")
        with pytest.raises(kind, match=said):
            transaction.put(key, value)
    assert len(db) == 1  # the refusal costs only itself


def test_the_longest_key(db: kv.DB) -> None:
    with db.transaction() as transaction:
        transaction.put("x" * 511, b"1")
    assert db.get("x" * 511) == b"1"


def test_one_writer_at_a_time(db: kv.DB, tmp_path: Path) -> None:
    with db.transaction():
        with pytest.raises(RuntimeError, match="inside a write transaction already"):
            db.transaction()
        with pytest.raises(RuntimeError, match="closed inside a write transaction"):
            db.close()
        refused = in_thread(lambda: db.transaction(wait=False))
        assert isinstance(refused, TimeoutError)
        assert "another thread" in str(refused)
    in_thread(lambda: put(db, a="1"))
    assert db.get("a") == b"1"


def test_a_writer_waits_for_the_one_before(db: kv.DB) -> None:
    with db.transaction() as transaction:
        transaction.put("a", b"1")
        waiting = threading.Thread(target=put, args=(db,), kwargs={"a": "2"})
        waiting.start()
    waiting.join(WAIT_S)
    assert db.get("a") == b"2"


def test_a_transaction_belongs_to_its_thread(db: kv.DB) -> None:
    with db.transaction() as transaction:
        refused = in_thread(lambda: transaction.put("a", b"1"))
    assert isinstance(refused, ValueError)
    assert "belongs to the thread" in str(refused)


def test_a_transaction_that_is_dropped_is_aborted(db: kv.DB) -> None:
    transaction = db.transaction()
    transaction.put("a", b"1")
    del transaction
    put(db, b="2")
    assert dict(db) == {b"b": b"2"}


# -- cursors


def test_a_cursor_goes_through_the_keys_in_order(db: kv.DB) -> None:
    put(db, b="2", a="1", c="3")
    cursor = db.cursor()
    seen = []
    while cursor.valid:
        seen.append((cursor.key, cursor.value))
        cursor.next()
    assert seen == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    with pytest.raises(ValueError, match="on no record"):
        _ = cursor.key
    assert cursor.seek_to_first()
    assert list(cursor) == seen
    assert not cursor.valid
    assert cursor.seek_to_last()
    assert cursor.key == b"c"
    assert cursor.previous()
    assert cursor.key == b"b"
    assert cursor.seek("b")
    assert not cursor.seek("ab")
    assert cursor.key == b"b"
    assert not cursor.seek("d")
    assert not cursor.valid
    cursor.close()
    cursor.close()
    with pytest.raises(ValueError, match="closed"):
        cursor.seek_to_first()


def test_a_cursor_sees_one_state(db: kv.DB) -> None:
    put(db, a="1", b="2")
    with db.cursor() as cursor:
        put(db, a="changed", aa="new")
        assert list(cursor) == [(b"a", b"1"), (b"b", b"2")]
        cursor.seek_to_first()
        assert cursor.refresh()
        assert list(cursor) == [(b"a", b"changed"), (b"aa", b"new"), (b"b", b"2")]
        assert not cursor.refresh()


def test_an_empty_database_has_no_valid_cursor(db: kv.DB) -> None:
    with db.cursor() as cursor:
        assert not cursor.valid
        assert not cursor.seek_to_last()
    assert len(db) == 0


@given(
    st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=6)),
    st.binary(min_size=1, max_size=6),
)
def test_a_cursor_is_where_a_sorted_list_is(
    tmp_path_factory: pytest.TempPathFactory, records: dict[bytes, bytes], key: bytes
) -> None:
    with kv.open(tmp_path_factory.mktemp("db"), "new", sync=False) as db:
        with db.transaction() as transaction:
            for name, value in records.items():
                transaction.put(name, value)
        with db.cursor() as cursor:
            assert cursor.seek(key) == (key in records)
            assert list(cursor) == sorted(item for item in records.items() if item[0] >= key)


# -- tables


def test_several_tables_in_one_file(db: kv.DB) -> None:
    images, labels = db.table("images"), db.table("labels")
    with db.transaction(table=images) as transaction:
        transaction.put("1", b"pixels")
        transaction.put("1", b"cat", table=labels)
    assert db.tables() == ["images", "labels"]
    assert db.get("1", table="images") == b"pixels"
    with db.cursor(table="labels") as cursor:
        assert list(cursor) == [(b"1", b"cat")]
    assert db.count(table="images") == 1
    path = db.path
    db.close()
    with kv.open(path) as again:
        assert again.tables() == ["images", "labels"]
        assert again.get("1", table="labels") == b"cat"
        with pytest.raises(KeyError, match="'masks'"):
            again.table("masks")
        with pytest.raises(KeyError, match="'masks'"):
            again.get("1", table="masks")


def test_named_tables_and_records_without_do_not_mix(db: kv.DB, tmp_path: Path) -> None:
    db.table("images")
    with db.transaction() as transaction, pytest.raises(ValueError, match="say which"):
        transaction.put("a", b"1")
    with kv.open(tmp_path / "plain", "new") as plain:
        put(plain, a="1", b="x" * 48)  # as long as what LMDB keeps under a table's name
        with pytest.raises(ValueError, match="beside them"):
            plain.table("images")
        assert plain.tables() == []


def test_a_table_that_is_missing_costs_no_transaction(db: kv.DB) -> None:
    with pytest.raises(KeyError):
        db.transaction(table="nope")
    db.table("yes")
    with db.transaction(table="yes") as transaction:
        transaction.put("a", b"1")
    assert db.get("a", table="yes") == b"1"


# -- the map


def test_a_full_map_grows_and_the_transaction_is_done_again(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new", map_bytes=1 << 20) as db:
        put(db, a="old", gone="x")
        with db.cursor() as reader, db.transaction() as transaction:
            for i in range(2000):
                transaction.put(f"{i:04}", b"v" * 3000)
                if i == 5:
                    transaction.delete("gone")
                    assert transaction.get("0003") == b"v" * 3000
            assert transaction.get("gone") is None
            assert reader.key == b"a"
            assert reader.next()  # in the newest state, which has no "gone" only after the commit
            assert reader.key == b"gone"
        assert db.environment.map_bytes > 6_000_000
        assert len(db) == 2001
        assert db.get("1999") == b"v" * 3000
        assert db.get("gone") is None


def test_a_value_larger_than_the_map(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new", map_bytes=1 << 20) as db:
        with db.transaction() as transaction:
            transaction.put("a", b"v" * (20 << 20))
        assert db.get("a") == b"v" * (20 << 20)


def test_the_map_grows_while_others_read(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new", map_bytes=1 << 20) as db:
        put(db, **{f"{i:03}": "value" * 10 for i in range(100)})
        stop, wrong = threading.Event(), []

        def read() -> None:
            while not stop.is_set():
                if db.get("050") != b"value" * 10 or sum(1 for _ in db) < 100:
                    wrong.append("a record is missing")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for i in range(40):
            with db.transaction() as transaction:
                transaction.put(f"large {i}", b"x" * 200_000)
        stop.set()
        for reader in readers:
            reader.join(WAIT_S)
        assert not wrong
        assert len(db) == 140


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "drop"]), st.sampled_from([None, "t"]), st.binary(), st.binary()
        )
    )
)
def test_the_journal_gives_back_what_was_added(steps: list[tuple[Any, str | None, bytes, bytes]]) -> None:
    journal = Journal()
    for step in steps:
        journal.add(*step)
    assert list(journal) == steps == list(journal)
    journal.close()


# -- places


def test_modes(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "db"
    with pytest.raises(FileNotFoundError, match="mode='new'"):
        kv.open(place)
    with kv.open(place, "write") as db:
        put(db, a="1")
    with pytest.raises(FileExistsError, match="mode='write' continues"):
        kv.open(place, "new")
    with kv.open(place) as db:
        assert db.get("a") == b"1"
        with pytest.raises(PermissionError, match="mode='write'"):
            db.transaction()
    with pytest.raises(ValueError, match="want 'new', 'read' or 'write'"):
        kv.open(place, "w")  # type: ignore[arg-type]


def test_foreign_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for mode in ("new", "write"):
        with pytest.raises(FileExistsError, match=r"photo\.jpg"):
            kv.open(tmp_path, mode)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"without data\.mdb"):
        kv.open(tmp_path)
    with pytest.raises(FormatError, match="not an LMDB database"):
        kv.open(tmp_path / "photo.jpg")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(FormatError, match="it begins with b'somethin'"):
        kv.open(tmp_path / "db", "write")
    assert sorted(os.listdir(tmp_path)) == ["db", "photo.jpg"]


def test_plain_lmdb_reads_ours_and_we_read_it(tmp_path: Path) -> None:
    with kv.open(tmp_path / "ours", "new") as db:
        put(db, a="1")
    with lmdb.open(str(tmp_path / "ours")) as environment, environment.begin() as transaction:
        assert transaction.get(b"a") == b"1"
    single = tmp_path / "single.mdb"
    with lmdb.open(str(single), subdir=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"b", b"2")
    with kv.open(single, "write") as db:
        assert dict(db) == {b"b": b"2"}
        put(db, c="3")
        db.prune()
        assert dict(db) == {b"b": b"2", b"c": b"3"}


def test_one_db_for_each_process(db: kv.DB) -> None:
    with pytest.raises(ValueError, match="already open in this process"):
        kv.open(db.path)
    put(db, a="1")
    with pytest.raises(ValueError, match="already open in this process"):
        copy.copy(db)


def test_closing(tmp_path: Path) -> None:
    db = kv.open(tmp_path / "db", "new")
    put(db, a="1")
    cursor = db.cursor()
    pickled = pickle.dumps(db)
    db.close()
    db.close()
    for use in (lambda: db.get("a"), lambda: cursor.next(), lambda: db.transaction(), lambda: len(db)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "closed" in repr(db)
    with pickle.loads(pickled) as again:
        assert again.get("a") == b"1"
        put(again, b="2")


def test_prune_gives_space_back(db: kv.DB) -> None:
    with db.transaction() as transaction:
        for i in range(500):
            transaction.put(f"{i:03}", b"x" * 4000)
    with db.transaction() as transaction:
        for i in range(499):
            transaction.delete(f"{i:03}")
    before = db.physical_size
    with db.cursor() as cursor:
        db.prune()
        assert cursor.key == b"499"
        assert not cursor.next()
    assert db.physical_size < before / 20
    assert dict(db) == {b"499": b"x" * 4000}
    put(db, more="1")
    assert len(db) == 2
    assert sorted(os.listdir(db.path)) == ["data.mdb", "kara-writer.lock", "lock.mdb"]


def test_import_is_light() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        kv.nothing  # noqa: B018
