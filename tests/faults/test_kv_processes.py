"""One database in several processes: readers beside a writer, forks, locks, full disks, read-only places."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from kara_cache import kv

pytest.importorskip("lmdb")
from kara_cache.storage.kv.environment import Environment

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
WAIT_S = 60


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs `code`; `say(word)` there tells us and waits for a line of ours."""
    head = (
        "import sys\nfrom kara_cache import kv\n"
        "def say(word):\n    print(word, flush=True)\n    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
            process.stdin.close()  # type: ignore[union-attr]
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()


def heard(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().decode().strip() == word


def go_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def in_fork(act: Callable[[], object]) -> None:
    """Fails unless `act` does well in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def put(db: kv.DB, **records: str) -> None:
    with db.transaction() as transaction:
        for key, value in records.items():
            transaction.put(key, value.encode())


def test_a_reader_sees_states_that_were_committed_and_never_waits(tmp_path: Path) -> None:
    """The writer keeps the sum of all rows at zero, and grows the map under the reader."""
    code = """
table = kv.open_table(sys.argv[1], "write", map_bytes=1 << 20)
say("open")
for i in range(150):
    with table.batch():
        table.append({"n": i, "text": "x" * 50_000})
        table.append({"n": -i})
        if i % 3 == 0:
            del table[0:2]
    if i in (0, 75, 149):
        with table.batch():
            table.append({"n": 1})
            say("inside")
            table.append({"n": -1})
table.close()
"""
    with kv.open_table(tmp_path / "db", "new", map_bytes=1 << 20) as table:
        table.extend({"n": n} for n in (5, -5))
    with child(code, tmp_path / "db") as writer:
        heard(writer, "open")
        with kv.open_table(tmp_path / "db", map_bytes=1 << 20) as table:
            go_on(writer)
            for _ in range(3):
                heard(writer, "inside")
                for _ in range(20):
                    assert sum(row["n"] for row in table) == 0
                go_on(writer)
                for _ in range(20):
                    rows = table.db.environment
                    with rows.read():  # one snapshot for all that it sees
                        assert sum(row["n"] for row in table[:]) == 0
            assert writer.wait(WAIT_S) == 0
            assert sum(row["n"] for row in table) == 0
            assert table.physical_size > 1 << 20


def test_the_map_grows_on_both_sides(tmp_path: Path) -> None:
    code = """
with kv.open(sys.argv[1], "write", map_bytes=1 << 20) as db:
    say("open")
    with db.transaction() as transaction:
        for i in range(100):
            transaction.put(f"child {i}", b"x" * 50_000)
    say("written")
    say(str(len(db)))
"""
    with kv.open(tmp_path / "db", "new", map_bytes=1 << 20) as db:
        put(db, a="1")
        cursor = db.cursor()
        with child(code, tmp_path / "db") as other:
            heard(other, "open")
            go_on(other)
            heard(other, "written")
            assert (cursor.key, cursor.value) == (b"a", b"1")
            assert len(db) == 101
            assert cursor.next()
            with db.transaction() as transaction:
                for i in range(200):
                    transaction.put(f"parent {i}", b"x" * 50_000)
            go_on(other)
            heard(other, "301")
        cursor.close()


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    code = """
with kv.open(sys.argv[1], "write") as db:
    with db.transaction() as transaction:
        transaction.put("child", b"1")
        say("writing")
    say("done")
"""
    with kv.open(tmp_path / "db", "new", lock_timeout_s=0.2) as db, child(code, db.path) as other:
        heard(other, "writing")
        with pytest.raises(TimeoutError, match=f"process {other.pid} has been writing for more than 0.2 s"):
            put(db, a="1")
        assert db.get("child") is None
        go_on(other)
        heard(other, "done")
        put(db, a="1")
        assert dict(db) == {b"a": b"1", b"child": b"1"}


def test_a_writer_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    code = """
db = kv.open(sys.argv[1], "write")
transaction = db.transaction()
transaction.put("child", b"1")
say("writing")
"""
    with kv.open(tmp_path / "db", "new", lock_timeout_s=WAIT_S) as db:
        with child(code, db.path) as other:
            heard(other, "writing")
            other.kill()
            other.wait(WAIT_S)
            put(db, a="1")
            other.returncode = 0
        assert dict(db) == {b"a": b"1"}


def test_prune_is_refused_while_somebody_else_has_it_open(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        put(db, a="1")
        with child(
            "db = kv.open(sys.argv[1])\nsay('open')\nassert db.get('a') == b'1'\ndb.close()", db.path
        ) as other:
            heard(other, "open")
            with pytest.raises(TimeoutError, match="another program has it open"):
                db.prune()
            assert dict(db) == {b"a": b"1"}
            go_on(other)
            assert other.wait(WAIT_S) == 0
        db.prune()
        put(db, b="2")
        assert dict(db) == {b"a": b"1", b"b": b"2"}


# -- fork


def test_a_forked_child_reads_and_writes(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        put(db, a="1", b="2")
        cursor = db.cursor()

        def act() -> None:
            assert cursor.key == b"a"
            assert cursor.next()
            assert (cursor.value, db.get("a")) == (b"2", b"1")
            put(db, child="3")

        in_fork(act)
        assert db.get("child") == b"3"
        assert cursor.next()
        assert (cursor.key, cursor.value) == (b"b", b"2")
        cursor.close()


def test_the_states_that_a_parent_reads_survive_its_children(tmp_path: Path) -> None:
    """A child that closed what it inherited would free the pages that the parent still reads."""
    with kv.open(tmp_path / "db", "new") as db:
        put(db, **{f"{i:04}": "old" * 300 for i in range(300)})
        cursor = db.cursor()
        in_fork(lambda: db.get("0001"))
        in_fork(db.close)
        cursor.seek_to_first()  # a new state begins here
        for i in range(5):
            put(db, **{f"{n:04}": f"new {i}" * 100 for n in range(300)})
        assert [value for _, value in cursor] == [b"old" * 300] * 300
        cursor.close()


def test_a_fork_inside_a_transaction_is_said_in_the_child(tmp_path: Path) -> None:
    with kv.open(tmp_path / "db", "new") as db:
        put(db, a="1")
        with db.transaction() as transaction:
            transaction.put("b", b"2")

            def act() -> None:
                with pytest.raises(RuntimeError, match="forked inside a write transaction"):
                    db.get("a")
                with pytest.raises(ValueError, match="belongs to the thread and the process"):
                    transaction.put("c", b"3")
                transaction.abort()  # of the parent's: nothing happens

            in_fork(act)
        assert dict(db) == {b"a": b"1", b"b": b"2"}


def test_a_forked_table_begins_with_what_is_committed(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new") as table:
        table.extend([{"i": 0}, {"i": 1}])
        table[0]["i"] = "not flushed"

        def act() -> None:
            assert table[0] == {"i": 0}
            table[1]["i"] = "child"
            table.append({"i": 2})
            table.flush()

        in_fork(act)
        table.flush()
        table.reload()
        assert list(table) == [{"i": "not flushed"}, {"i": "child"}, {"i": 2}]


@pytest.mark.parametrize("first", ["append", "batch"])
def test_a_forked_table_that_begins_with_writing(tmp_path: Path, first: str) -> None:
    """What the parent has changed in place is the parent's, and what the child appended stays the child's."""
    with kv.open_table(tmp_path / "db", "new") as table:
        table.extend({"n": n} for n in range(3))
        table[0]["n"] = "the parent's"

        def act() -> None:
            appended = {"n": "new"}
            if first == "append":
                table.append(appended)
            else:
                with table.batch():
                    table.append(appended)
            appended["n"] = "changed"
            assert table[1] == {"n": 1}
            assert table[-1] is appended
            table.close()

        in_fork(act)
        table.reload()
        assert [row["n"] for row in table] == ["the parent's", 1, 2, "changed"]


def test_a_forked_table_writes_back_nothing_of_its_parent(tmp_path: Path) -> None:
    with kv.open_table(tmp_path / "db", "new") as table:
        table.append({"n": 0}, "a")
        table["a"]["n"] = 1

        def act() -> None:
            with table.batch():
                table.append({"n": 2}, "b")
            assert table["a"] == {"n": 0}

        in_fork(act)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.clients
def test_loader_workers(tmp_path: Path, method: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    with kv.open_table(tmp_path / "db", "new") as table:
        table.extend({"i": i} for i in range(100))
    with kv.open_table(tmp_path / "db") as table:
        assert table[3] == {"i": 3}
        loader: Any = torch_data.DataLoader(
            table, batch_size=10, num_workers=2, multiprocessing_context=method, collate_fn=list, shuffle=True
        )
        assert sorted(row["i"] for batch in loader for row in batch) == list(range(100))


# -- places


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault
def test_a_full_disk_costs_the_transaction_only(small_disk: Path) -> None:
    with kv.open(small_disk / "db", "new") as db:
        put(db, a="1")

        def fill() -> None:
            with db.transaction() as transaction:
                for i in range(2000):
                    transaction.put(f"{i:04}", b"x" * 4000)

        with pytest.raises(OSError, match="No space left") as caught:
            fill()
        assert caught.value.errno == errno.ENOSPC
        assert dict(db) == {b"a": b"1"}
        put(db, b="2")
    with kv.open(small_disk / "db") as db:
        assert dict(db) == {b"a": b"1", b"b": b"2"}


@pytest.mark.fault
def test_a_change_that_the_disk_had_no_room_for_is_still_there(small_disk: Path) -> None:
    with kv.open_table(small_disk / "db", "new") as table:
        table.extend([{"text": ""}, {"text": ""}])
        table[0]["text"] = "x" * (8 << 20)
        table[1]["text"] = "small"
        with pytest.raises(OSError, match="No space left"):
            table.flush()
        with pytest.raises(OSError, match="No space left"), table.batch():
            table.append({"text": "x" * (8 << 20)})
        assert len(table) == 2
        table[0]["text"] = "less"
        table[1]["text"] = "small"
    with kv.open_table(small_disk / "db") as table:
        assert list(table) == [{"text": "less"}, {"text": "small"}]


@pytest.mark.parametrize("reads", [False, True])
def test_a_program_without_our_lock_writes_while_the_map_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """What only puts and deletes is done again on top of it; what has read is told."""
    code = """
import lmdb
with lmdb.open(sys.argv[1], map_size=1 << 20) as environment:
    with environment.begin(write=True) as transaction:
        transaction.put(b"theirs", b"1")
"""
    grow = Environment.grow

    def growing(environment: Environment) -> None:
        with child(code, environment.files.path):
            pass
        grow(environment)

    with kv.open(tmp_path / "db", "new", map_bytes=1 << 20) as db:
        put(db, before="1")
        monkeypatch.setattr(Environment, "grow", growing)
        transaction = db.transaction()
        if reads:
            transaction.get("before")
        with pytest.raises(kv.TransactionConflict) if reads else nullcontext():
            transaction.put("large", b"x" * (3 << 20))
            transaction.commit()
        monkeypatch.undo()
        assert sorted(key for key, _ in db) == [b"before", *([] if reads else [b"large"]), b"theirs"]
        put(db, after="1")


def test_a_batch_that_ends_while_it_goes_on_leaves_no_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import lmdb
with lmdb.open(sys.argv[1], map_size=1 << 20, max_dbs=2) as environment:
    with environment.begin(write=True) as transaction:
        transaction.put(b"theirs", b"1", db=environment.open_db(b"others", txn=transaction))
"""
    grow = Environment.grow

    def growing(environment: Environment) -> None:
        with child(code, environment.files.path):
            pass
        grow(environment)

    with kv.open_table(tmp_path / "db", "new", map_bytes=1 << 20) as table:
        table.append({"n": 0}, "a")
        monkeypatch.setattr(Environment, "grow", growing)
        with pytest.raises(kv.TransactionConflict), table.batch():
            table.update([("a", {"n": 1}), ("b", {"n": 2}), ("large", {"n": "x" * (3 << 20)})])
        monkeypatch.undo()
        with table.batch():
            assert dict(table.items()) == {"a": {"n": 0}}
        assert (table["a"], table.get("b")) == ({"n": 0}, None)


@pytest.mark.fault
def test_what_may_not_be_written_is_read_without_a_lock(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with kv.open(tmp_path / "db", "new") as db:
        put(db, a="1")
    (tmp_path / "db" / "data.mdb").chmod(0o444)
    (tmp_path / "db").chmod(0o555)
    for parent in [tmp_path / "db", *(tmp_path / "db").parents]:
        if parent.owner() == "root" and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)

    def act() -> None:
        os.setuid(65534)
        with kv.open(tmp_path / "db") as db:
            assert db.get("a") == b"1"
        with pytest.raises((PermissionError, FileExistsError)):
            kv.open(tmp_path / "db", "write")

    in_fork(act)
    (tmp_path / "db").chmod(0o755)


def test_little_address_space(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
with kv.open(sys.argv[1], "new") as db:
    with db.transaction() as transaction:
        for i in range(100):
            transaction.put(f"{i}", b"x" * 100_000)
    say(str(len(db)))
"""
    with child(code, tmp_path / "db") as other:
        heard(other, "100")
