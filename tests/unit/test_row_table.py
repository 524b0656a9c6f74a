"""A table of rows against a list and a dictionary, and what it promises about changes in place."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kara_cache import kv
from kara_cache.errors import ConfigError
from kara_cache.serialization import MsgpackSerializer, NoSerializer, Serializer

pytest.importorskip("lmdb")
WAIT_S = 30


@pytest.fixture
def table(tmp_path: Path) -> Iterator[kv.RowTable]:
    with kv.open_table(tmp_path / "db", "new") as opened:
        yield opened


def again(table: kv.RowTable, **options: Any) -> kv.RowTable:
    """The same table, closed and opened."""
    path, mode = table.db.path, "write"
    table.close()
    return kv.open_table(path, mode, **options)  # type: ignore[arg-type]


def filled(table: kv.RowTable, count: int) -> kv.RowTable:
    table.update((f"k{i}", {"i": i}) for i in range(count))
    return table


def test_a_list_and_a_dictionary(table: kv.RowTable) -> None:
    assert table.append({"i": 0}, "zero") == "zero"
    assert table.append({"i": 1}) == "#1"
    table.insert(0, {"i": -1}, "first")
    table.extend([{"i": 2}, {"i": 3}], keys=["two", "three"])
    assert [row["i"] for row in table] == [-1, 0, 1, 2, 3]
    assert list(table.keys()) == ["first", "zero", "#1", "two", "three"]
    assert (table["two"], table[3], table[-2]) == ({"i": 2},) * 3
    assert table[1:3] == [{"i": 0}, {"i": 1}]
    assert table[::-2] == [{"i": 3}, {"i": 1}, {"i": -1}]
    assert table[["three", 0, -1]] == [{"i": 3}, {"i": -1}, {"i": 3}]
    assert "two" in table
    assert "four" not in table
    assert 2 not in table
    assert (len(table), table.index("two"), table.key_at(-1)) == (5, 3, "three")
    assert (table.get("two"), table.get("four"), table.get("four", 0)) == ({"i": 2}, None, 0)
    assert dict(table.items())["zero"] == {"i": 0}


def test_indices_of_numpy(table: kv.RowTable) -> None:
    numpy = pytest.importorskip("numpy")
    filled(table, 5)
    assert table[numpy.int64(3)] == {"i": 3}
    assert table[numpy.array([4, 0])] == [{"i": 4}, {"i": 0}]
    del table[numpy.array([4, 0])]
    assert [row["i"] for row in table] == [1, 2, 3]


def test_deleting(table: kv.RowTable) -> None:
    filled(table, 10)
    del table["k3"]
    del table[0]
    del table[-1]
    del table[1:3]
    del table[["k1", 1, "k1"]]
    assert list(table.keys()) == ["k6", "k7", "k8"]
    assert table.pop() == {"i": 8}
    assert table.pop("k6") == {"i": 6}
    with pytest.raises(KeyError, match="k6"):
        del table["k6"]
    with pytest.raises(IndexError, match="row 1 of 1"):
        del table[1]
    with pytest.raises(KeyError):
        del table[["k7", "gone"]]  # all or none
    assert list(table.keys()) == ["k7"]
    table.clear()
    assert (len(table), list(table), table[:]) == (0, [], [])
    assert table.append({"i": 0}, "k7") == "k7"


def test_replacing(table: kv.RowTable) -> None:
    filled(table, 4)
    table["k1"] = {"i": 10}
    table[2] = {"i": 20}
    table[-1] = {"i": 30}
    table["new"] = {"i": 40}
    table[3:5] = [{"i": 31}, {"i": 41}]
    assert [row["i"] for row in table] == [0, 10, 20, 31, 41]
    assert list(table.keys()) == ["k0", "k1", "k2", "k3", "new"]
    with pytest.raises(ValueError, match="a slice of 2 rows cannot become 1"):
        table[0:2] = [{}]
    with pytest.raises(IndexError):
        table[5] = {}


def test_keys_are_unique(table: kv.RowTable) -> None:
    table.append({"i": 0}, "#1")
    with pytest.raises(ValueError, match="a row '#1' already"):
        table.append({}, "#1")
    assert table.append({"i": 1}) == "#1'"
    with pytest.raises(ValueError, match="1 to 510 bytes"):
        table.append({}, "")
    with pytest.raises(TypeError, match="is str, got int"):
        table.append({}, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        table[1.5]
    assert len(table) == 2


def test_keys_from_the_rows(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new", key="id") as table:
        assert table.append({"id": "a"}) == "a"
        table.extend([{"id": "b"}, {"id": "c"}])
        assert list(table.keys()) == ["a", "b", "c"]
    with kv.open_table(tmp_path / "db", "write", key=lambda row: row["id"].upper()) as table:
        assert table.append({"id": "d"}) == "D"


def test_extend_keeps_what_was_before_an_error(table: kv.RowTable) -> None:
    def rows() -> Iterator[Any]:
        for i in range(1500):
            yield {"i": i}
        yield object()

    with pytest.raises(TypeError):
        table.extend(rows())
    assert len(table) == 1000


# -- changes in place


def test_a_row_that_is_changed_is_written_back(table: kv.RowTable) -> None:
    filled(table, 3)["k1"]["i"] = "changed"
    table[2]["deep"] = [1]
    table[2]["deep"].append(2)
    table.append(kept := {"i": 3}, "k3")
    kept["i"] = 4
    with again(table) as reopened:
        assert list(reopened) == [{"i": 0}, {"i": "changed"}, {"i": 2, "deep": [1, 2]}, {"i": 4}]


def test_rows_that_leave_the_pool_take_their_changes_along(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new", pool_size=4) as table:
        filled(table, 100)
        for row in table:
            row["seen"] = True
        assert len(table._pool) < 10
        assert all(row["seen"] for row in table)
        with again(table) as reopened:
            assert all(row["seen"] for row in reopened)


def test_rows_that_are_held_are_not_lost(tmp_path: Path) -> None:
    """Also where only a part of the row is held."""
    with kv.open_table(tmp_path / "db", "new", pool_size=4) as table:
        table.extend({"i": i, "tags": [], "deep": {"x": {"y": []}}} for i in range(60))
        rows = [table[i] for i in range(20)]
        tags = [table[i]["tags"] for i in range(20, 40)]
        deep = [table[i]["deep"]["x"]["y"] for i in range(40, 60)]
        for _ in range(3):
            for i in range(60):
                table[i]
        for i in range(20):
            rows[i]["i"] = -1
            tags[i].append("late")
            deep[i].append("later")
        assert table[5] is rows[5]
        with again(table) as reopened:
            assert all(row["i"] == -1 for row in reopened[:20])
            assert all(row["tags"] == ["late"] for row in reopened[20:40])
            assert all(row["deep"]["x"]["y"] == ["later"] for row in reopened[40:])


def test_rows_that_are_let_go_of_leave(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new", pool_size=4) as table:
        shared: list[int] = []
        table.extend({"i": i, "shared": shared} for i in range(50))
        assert len(table._pool) == 50  # they hold what we hold
        del shared
        for i in range(20):
            table.append({"i": i})
        assert len(table._pool) < 10


def test_a_row_under_two_keys_is_two_rows_on_disk(table: kv.RowTable) -> None:
    row = {"i": 1}
    table.append(row, "a")
    table.append(row, "b")
    row["i"] = 2
    with again(table) as reopened:
        assert list(reopened) == [{"i": 2}, {"i": 2}]


def test_a_change_that_cannot_be_written_is_said_and_kept(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new", pool_size=2) as table:
        filled(table, 10)
        table["k3"]["bad"] = object()
        for i in range(10):
            table[i]
        with pytest.raises(TypeError, match="row 'k3' was changed and cannot be written"):
            table.flush()
        with pytest.raises(TypeError, match="'k3'"):
            table.close()
        del table["k3"]["bad"]
        table["k3"]["good"] = 1
        with again(table) as reopened:
            assert reopened["k3"] == {"i": 3, "good": 1}


def test_reading_alone_writes_nothing(table: kv.RowTable) -> None:
    filled(table, 2000)
    table.flush()
    state = table.db.environment.last_transaction()
    assert sum(row["i"] for row in table) == 1999000
    table.reload()
    assert table[7] == {"i": 7}
    assert table.db.environment.last_transaction() == state


def test_a_spelling_that_is_not_ours_is_no_change(tmp_path: Path) -> None:
    class Spaced(Serializer):
        def serialize(self, x: Any) -> bytes:
            return b"  %d" % x[0]

        def deserialize(self, x: bytes) -> Any:
            return [int(x)]

    with kv.open_table(tmp_path / "db", "new", serialization=Spaced()) as table:
        table.append([7], "a")
        with table.db.transaction(table="rows") as transaction:
            key = b"r" + bytes(8)
            transaction.put(key, transaction.get(key).replace(b"  ", b" "))
        table.reload()
        state = table.db.environment.last_transaction()
        assert table["a"] == [7]
        table.flush()
        assert table.db.environment.last_transaction() == state


# -- batches


def test_a_batch_is_all_or_nothing(table: kv.RowTable) -> None:
    filled(table, 5)
    table["k0"]["i"] = "before"
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is tested
        with table.batch():
            table.append({"i": 5}, "k5")
            table["k1"]["i"] = "inside"
            del table["k2"]
            assert len(table) == 5
            assert [row["i"] for row in table] == ["before", "inside", 3, 4, 5]
            _ = 1 / 0
    assert [row["i"] for row in table] == ["before", 1, 2, 3, 4]
    with table.batch():
        table["k1"]["i"] = "inside"
        table.clear()
        table.append({"i": 9}, "k9")
        with pytest.raises(RuntimeError, match="a batch in a batch"), table.batch():
            pass
    with again(table) as reopened:
        assert list(reopened.items()) == [("k9", {"i": 9})]


def test_others_see_a_batch_when_it_is_committed(table: kv.RowTable) -> None:
    filled(table, 2)
    seen: list[int] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(len(table)))
        thread.start()
        thread.join(WAIT_S)

    with table.batch():
        table.append({})
        look()
    look()
    assert seen == [2, 3]


def test_a_pool_that_is_full_while_another_thread_writes(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new", pool_size=2) as table:
        filled(table, 50)
        done = threading.Event()

        def change() -> None:
            for i in range(20):
                table[i]["i"] = "changed"
            done.set()

        with table.batch():
            thread = threading.Thread(target=change)
            thread.start()
            assert done.wait(WAIT_S)  # it does not wait for us, and we do not for it
            thread.join(WAIT_S)
        table.flush()
        assert [row["i"] for row in table[:20]] == ["changed"] * 20


# -- the rest


def test_other_serializations(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        raw = kv.RowTable(db, "raw", serialization=NoSerializer())
        packed = kv.RowTable(db, "packed", serialization=MsgpackSerializer())
        raw.append(b"\0\1", "a")
        packed.append({"image": b"\0\1", "label": 3}, "a")
        assert (raw["a"], packed["a"]["image"]) == (b"\0\1", b"\0\1")
        assert db.tables() == ["packed", "raw"]
        with pytest.raises(ConfigError, match="written with NoSerializer, got JSONSerializer"):
            kv.RowTable(db, "raw")


def test_a_reader_does_not_write(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        kv.open_table(tmp_path / "db")
    with kv.open_table(tmp_path / "db", "new") as table:
        filled(table, 3)
    with kv.open_table(tmp_path / "db") as table:
        table["k0"]["i"] = "changed"
        table.flush()
        with pytest.raises(PermissionError):
            table.append({})
        with pytest.raises(PermissionError), table.batch():
            pass
    with kv.open_table(tmp_path / "db") as table:
        assert table["k0"] == {"i": 0}
    with pytest.raises(KeyError, match="other"):
        kv.open_table(tmp_path / "db", name="other")


def test_prune(table: kv.RowTable) -> None:
    table.extend({"i": i, "text": "x" * 2000} for i in range(2000))
    del table[10:1990]
    table[0]["i"] = "changed"
    before = table.physical_size
    table.prune()
    assert table.physical_size < before / 10
    assert [row["i"] for row in table] == ["changed", *range(1, 10), *range(1990, 2000)]
    table.append({"i": "more"})
    with again(table) as reopened:
        assert len(reopened) == 21


def test_iteration_shifts_as_in_a_list(table: kv.RowTable) -> None:
    filled(table, 6)
    seen = []
    for row in table:
        seen.append(row["i"])
        if row["i"] == 1:
            del table["k0"]
        if row["i"] == 4:
            table.append({"i": 99})
    assert seen == [0, 1, 3, 4, 5, 99]


def test_pickled_it_begins_with_what_is_flushed(table: kv.RowTable) -> None:
    filled(table, 3)
    pickled = pickle.dumps(table)
    table.close()
    with pickle.loads(pickled) as other:
        assert other["k2"] == {"i": 2}


def test_closing_the_database_flushes(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        filled(kv.RowTable(db), 2)
        table = kv.RowTable(db)
        table["k1"]["i"] = "changed"
    table.close()
    with kv.open_table(tmp_path / "db") as again:
        assert again["k1"] == {"i": "changed"}


def test_a_table_that_nobody_closes_is_written_at_exit(tmp_path: Path) -> None:
    script = """
import sys
from kara_cache import kv
table = kv.open_table(sys.argv[1], "new")
table.append({"i": 0}, "global")
table["global"]["i"] = 1
def forgets():
    dropped = kv.open_table(sys.argv[2], "new")
    dropped.append({"i": 0}, "dropped")
    dropped["dropped"]["i"] = 1
forgets()
"""
    places = [str(tmp_path / name) for name in ("global", "dropped")]
    subprocess.run([sys.executable, "-c", script, *places], check=True, timeout=WAIT_S)
    for place in places:
        with kv.open_table(place) as table:
            assert list(table) == [{"i": 1}]


def test_threads_share_a_table_whose_map_grows(tmp_path: Path) -> None:
    """Each counts in rows that leave and come back, while others append, iterate and write batches."""
    counted = [0] * 20
    locks = [threading.Lock() for _ in counted]
    wrong: list[BaseException] = []

    def work(table: kv.RowTable, seed: int) -> None:
        rng = random.Random(seed)
        for step in range(80):
            number, what = rng.randrange(len(counted)), rng.random()
            if what < 0.6:
                with locks[number]:
                    table[f"c{number}"]["n"] += 1
                    counted[number] += 1
            elif what < 0.75:
                table.append({"pad": "x" * rng.randrange(40_000)}, f"a{seed}.{step}")
            elif what < 0.85:
                with table.batch():
                    table.append({}, f"b{seed}.{step}")
            elif what < 0.9:
                table.flush()
            else:
                assert sum(1 for _ in table) >= len(counted)

    def watched(table: kv.RowTable, seed: int) -> None:
        try:
            work(table, seed)
        except BaseException as exc:
            wrong.append(exc)

    path = tmp_path / "db"
    with kv.open_table(path, "new", pool_size=6, map_bytes=1 << 20, sync=False) as table:
        table.update((f"c{number}", {"n": 0}) for number in range(len(counted)))
        threads = [threading.Thread(target=watched, args=(table, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert not wrong
        assert table.db.environment.map_bytes > 1 << 20
    with kv.open_table(path) as table:
        assert [table[f"c{number}"]["n"] for number in range(len(counted))] == counted
