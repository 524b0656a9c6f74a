"""A writer of a table is killed at any moment: what it said was done is there, and nothing half done."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import kv_child
import pytest

from kara_cache import KaraStorage, kv

pytest.importorskip("lmdb")
WAIT_S = 60


def killed_after(path: Path, seed: int, dots: int, extra_reads: int) -> int:
    """How many steps the child said were done before it was dead."""
    command = [sys.executable, kv_child.__file__, str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        done = 0
        while done < dots and child.stdout.read(1):
            done += 1
        for _ in range(extra_reads):  # a moment that is not the end of a step
            path.exists()
        child.kill()
        child.wait(WAIT_S)
        return done + len(child.stdout.read())


def check(path: Path, seed: int, done: int) -> None:
    model: kv_child.Model = []
    steps = list(kv_child.steps(seed))
    for step in steps[:done]:
        kv_child.do_to_model(model, *step)
    with kv.open_table(path, "write") as table:
        found = list(table.items())
        if found != model:  # it was killed between the commit and the dot
            kv_child.do_to_model(model, *steps[done])
        assert found == model
        assert [table.index(key) for key, _ in model] == list(range(len(model)))
        table.append({"after": seed}, f"after {seed}")
        assert table[-1] == {"after": seed}
        del table[-1]


def trial(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    done = killed_after(path, seed, rng.randrange(kv_child.STEPS // 4), rng.randrange(300))
    if path.exists():
        check(path, seed, done)


@pytest.mark.parametrize("seed", range(8))
def test_killed(tmp_path: Path, seed: int) -> None:
    trial(tmp_path / "db", seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_many_times(tmp_path: Path) -> None:
    for seed in range(100, 300):
        trial(tmp_path / str(seed), seed)


def test_all_steps_without_a_kill(tmp_path: Path) -> None:
    kv_child.main(str(tmp_path / "db"), "7")
    check(tmp_path / "db", 7, kv_child.STEPS)


PUBLISH = """
import sys
from kara_cache import KaraStorage, kv
def progress(done, total):
    if done == int(sys.argv[3]):
        print("there", flush=True)
        sys.stdin.read()
table = kv.open_table(sys.argv[1])
kv.publish(table, KaraStorage(sys.argv[2]), "ns", "k", "1", progress=progress, max_file_size=1000)
print("published", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("at", [1, 250, 500])
def test_a_publication_that_is_killed_is_not_seen_and_can_be_done_again(tmp_path: Path, at: int) -> None:
    url = f"file://{tmp_path}/storage"
    with kv.open_table(tmp_path / "db", "new") as table:
        table.update((f"id{i}", {"i": i}) for i in range(500))
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISH, tmp_path / "db", url, str(at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"there\n"
        storage = KaraStorage(url)
        with pytest.raises(ValueError, match="not exists"):
            storage.open("ns", "k")
        with kv.open_table(tmp_path / "db") as table, pytest.raises(BlockingIOError):
            kv.publish(table, storage, "ns", "k", "1")  # the other one is at it
        child.kill()
        child.wait(WAIT_S)
    with pytest.raises(ValueError, match="not exists"):
        storage.open("ns", "k")
    with kv.open_table(tmp_path / "db") as table:
        assert kv.publish(table, storage, "ns", "k", "1") == 500
        with pytest.raises(FileExistsError, match="versions do not change"):
            kv.publish(table, storage, "ns", "k", "1")
    with storage.open("ns", "k") as dataset:
        assert (len(dataset), dataset["id77"], dataset[499]) == (500, {"i": 77}, {"i": 499})
        assert dataset.verify().ok
    assert not list(tmp_path.rglob("publishing"))


def test_rows_that_no_publication_wrote_are_not_touched(tmp_path: Path) -> None:
    storage = KaraStorage(f"file://{tmp_path}/storage")
    place = tmp_path / "storage" / "row" / "ns" / "k" / "1" / "data"
    place.mkdir(parents=True)
    (place / "0.blk").write_bytes(b"somebody's")
    with kv.open_table(tmp_path / "db", "new") as table, pytest.raises(FileExistsError, match=r"data/0\.blk"):
        kv.publish(table, storage, "ns", "k", "1")
    assert (place / "0.blk").read_bytes() == b"somebody's"
