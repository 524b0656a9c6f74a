from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import require_module

torch = require_module("torch")

from kara_cache.sampling import Remainder, RowOrder, Shard  # noqa: E402 - after the skip
from kara_cache.torch import (  # noqa: E402
    MemoryRows,
    ResumableLoader,
    RowBatches,
    RowMap,
    RowStream,
    make_torch_dataset,
)
from kara_cache.torch.epoch_cursor import EpochPart  # noqa: E402

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(400),  # workers that are spawned load torch, each for itself
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*suggested max number of worker:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning"),  # torchdata 0.11 under torch 2.13
]
DataLoader = torch.utils.data.DataLoader
ROWS = MemoryRows([f"row {number}" for number in range(101)])
METHODS = ["fork", "spawn", "forkserver"]


def as_it_is(batch: Any) -> Any:
    return batch


def order(rows: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> list[int]:
    return RowOrder(rows, shuffle=shuffle, seed=seed, epoch=epoch).rows_at(range(rows))


def names(numbers: Sequence[int]) -> list[str]:
    return [f"row {number}" for number in numbers]


def flat(batches: Any) -> list[Any]:
    return [row for batch in batches for row in batch]


def loader(stream: RowStream, workers: int = 0, **options: Any) -> ResumableLoader:
    return ResumableLoader(stream, num_workers=workers, collate_fn=as_it_is, **options)


def interleaved(of_ranks: Sequence[Sequence[Any]]) -> list[Any]:
    nothing = object()
    return [row for turn in zip_longest(*of_ranks, fillvalue=nothing) for row in turn if row is not nothing]


# -- one order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("prefetch_bytes", [0, "1KiB", "32MiB"])
def test_a_stream_is_a_pass_each_time(shuffle: bool, prefetch_bytes: int | str) -> None:
    stream = RowStream(ROWS, shuffle=shuffle, seed=5, prefetch_bytes=prefetch_bytes)
    want = names(order(101, seed=5, shuffle=shuffle))
    assert list(stream) == list(stream) == want
    assert next(iter(stream)) == want[0]
    assert list(stream) == want
    stream.set_epoch(3)
    assert list(stream) == names(order(101, seed=5, epoch=3, shuffle=shuffle))
    assert len(stream) == 101


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_order_does_not_depend_on_workers(workers: int) -> None:
    stream = RowStream(ROWS, batch_size=4, seed=2)
    batches = list(loader(stream, workers))
    assert flat(batches) == names(order(101, seed=2))
    assert [len(batch) for batch in batches] == [4] * 25 + [1]
    plain = DataLoader(stream, batch_size=4, num_workers=workers, collate_fn=as_it_is)
    assert flat(plain) == names(order(101, seed=2))


@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_every_start_method_and_epochs_of_workers_that_persist(method: str) -> None:
    made = loader(
        RowStream(ROWS, batch_size=8), 2, multiprocessing_context=method, persistent_workers=True, timeout=300
    )
    for epoch in (0, 4, 4):
        made.set_epoch(epoch)
        assert flat(made) == names(order(101, epoch=epoch))
    assert len(flat(islice(made, 3))) == 24  # a pass that is left in its middle
    made.load_state_dict({**made.state_dict(), "position": 96, "seed": 7})
    assert flat(made) == names(order(101, epoch=4, seed=7)[96:])


def test_another_batch_size_than_the_loaders_still_gives_each_row_once() -> None:
    stream = RowStream(ROWS, batch_size=3)
    plain = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=as_it_is)
    assert sorted(flat(plain)) == sorted(names(range(101)))


@given(rows=st.integers(0, 60), ranks=st.integers(1, 5), batch_size=st.integers(1, 7))
@settings(max_examples=40)
def test_ranks_together_read_the_order_of_one(rows: int, ranks: int, batch_size: int) -> None:
    parts = [
        list(RowStream(MemoryRows(range(rows)), batch_size=batch_size, rank=rank, world_size=ranks))
        for rank in range(ranks)
    ]
    assert interleaved(parts) == order(rows)


@pytest.mark.parametrize(
    ("remainder", "lengths"), [("keep", [26, 25, 25, 25]), ("pad", [26] * 4), ("drop", [25] * 4)]
)
def test_remainders(remainder: Remainder, lengths: list[int]) -> None:
    streams = [RowStream(ROWS, rank=rank, world_size=4, remainder=remainder) for rank in range(4)]
    parts = [list(stream) for stream in streams]
    assert [len(part) for part in parts] == [len(stream) for stream in streams] == lengths
    assert interleaved(parts) == names((order(101) * 2)[: sum(lengths)])


def test_maps_have_the_same_order() -> None:
    batches = RowBatches(101, batch_size=4, seed=2)
    plain = DataLoader(RowMap(ROWS), batch_sampler=batches, num_workers=2, collate_fn=as_it_is)
    assert flat(plain) == flat(plain) == names(order(101, seed=2))
    assert len(plain) == len(batches) == 26
    made = ResumableLoader(RowMap(ROWS), batches, num_workers=2, collate_fn=as_it_is, persistent_workers=True)
    for epoch in (0, 1):
        made.set_epoch(epoch)
        assert made.epoch == epoch
        assert flat(made) == names(order(101, seed=2, epoch=epoch))


def test_decoding() -> None:
    assert list(RowStream(ROWS, shuffle=False, decode=len))[:11] == [5] * 10 + [6]
    assert RowMap(ROWS, decode=len).__getitems__([1, 100]) == [5, 7]


# -- going on ----------------------------------------------------------------------------------------------


@st.composite
def sessions(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Runs of one epoch: ranks, batch size, and how many steps until the job is killed."""
    run = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 5))
    return draw(st.lists(run, max_size=5))


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_an_epoch_over_many_kills_with_real_workers(examples: int) -> None:
    run = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 3), st.integers(0, 4))

    @given(killed=st.lists(run, min_size=1, max_size=3), last=run, rows=st.integers(20, 90))
    @settings(max_examples=examples)
    def check(killed: list[tuple[int, int, int, int]], last: tuple[int, int, int, int], rows: int) -> None:
        state: dict[str, Any] | None = None
        read: list[int] = []
        for ranks, batch_size, workers, steps in [*killed, (*last[:3], 10**6)]:
            of_ranks, states = [], []
            for rank in range(ranks):
                stream = RowStream(
                    MemoryRows(range(rows)), batch_size=batch_size, rank=rank, world_size=ranks
                )
                made = loader(stream, workers, timeout=300 if workers else 0)
                if state is not None:
                    made.load_state_dict(state)
                it = iter(made)
                of_ranks.append(flat(islice(it, steps)))
                states.append(made.state_dict())
                del it  # workers die with what they had prefetched
            state = max(states, key=lambda each: each["position"])
            read += interleaved(of_ranks)
        assert read == order(rows)

    check()


@given(
    rows=st.integers(0, 120), killed=sessions(), last=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    seed=st.integers(0, 9), epoch=st.integers(0, 3), by_map=st.booleans(),
)  # fmt: skip
@settings(max_examples=120)
def test_an_epoch_over_many_kills(
    rows: int, killed: list[tuple[int, int, int]], last: tuple[int, int], seed: int, epoch: int, by_map: bool
) -> None:
    """Whatever ranks and batch sizes come after each other, together they read the order of one process."""
    data = MemoryRows(range(rows))
    state: dict[str, Any] | None = None
    read: list[int] = []
    for ranks, batch_size, steps in [*killed, (*last, 10**6)]:
        of_ranks, states = [], []
        for rank in range(ranks):
            options: Any = {"batch_size": batch_size, "rank": rank, "world_size": ranks, "seed": seed}
            if by_map:
                made = ResumableLoader(RowMap(data), RowBatches(rows, **options), collate_fn=as_it_is)
            else:
                made = loader(RowStream(data, **options, prefetch_bytes=0))
            made.set_epoch(epoch)
            if state is not None:
                made.load_state_dict(state)
            made.set_epoch(epoch)
            of_ranks.append(flat(islice(made, steps)))
            states.append(made.state_dict())
        if steps < 10**6 and len({len(part) for part in of_ranks}) == 1:
            assert all(other == states[0] for other in states)
        state = json.loads(json.dumps(max(states, key=lambda each: each["position"])))
        read += interleaved(of_ranks)
    assert read == order(rows, seed=seed, epoch=epoch)
    assert {each["position"] for each in states} == {rows}, "at the end also those that had fewer batches"


@given(
    rows=st.integers(0, 60), start=st.integers(0, 30), ranks=st.integers(1, 5), batch_size=st.integers(1, 6)
)
def test_a_count_of_rows_is_the_same_position_on_every_rank(
    rows: int, start: int, ranks: int, batch_size: int
) -> None:
    for step in range(12):
        positions = set()
        for rank in range(ranks):
            part = EpochPart(rows, True, 0, 0, start, Shard(rank, ranks), "keep", batch_size)
            taken = min(step * batch_size, len(part.positions))
            if taken > (step - 1) * batch_size:  # this rank has a batch in this step
                positions |= {part.after(taken), part.after_batches(step)}
        assert positions <= {min(max(rows, start), start + step * batch_size * ranks)}


@given(rows=st.integers(0, 40), ranks=st.integers(1, 4), batch_size=st.integers(1, 6))
@settings(max_examples=40)
def test_ranks_agree_between_two_steps(rows: int, ranks: int, batch_size: int) -> None:
    """Also when the last batch of some is shorter than that of others."""
    by_step: dict[int, set[int]] = {}
    for rank in range(ranks):
        stream = RowStream(MemoryRows(range(rows)), batch_size=batch_size, rank=rank, world_size=ranks)
        for step, _ in enumerate(DataLoader(stream, batch_size=batch_size, collate_fn=as_it_is)):
            by_step.setdefault(step, set()).add(stream.state_dict()["position"])
    for step, positions in by_step.items():
        assert positions == {min(rows, (step + 1) * batch_size * ranks)}


@pytest.mark.parametrize("taken", [0, 1, 7, 24, 26])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3), (3, 1)])
def test_what_workers_had_prefetched_comes_again(before: int, after: int, taken: int) -> None:
    first = loader(RowStream(ROWS, batch_size=4), before)
    it = iter(first)
    got = flat(islice(it, taken))
    state = first.state_dict()
    del it
    again = RowStream(ROWS, batch_size=3)
    again.load_state_dict(state)
    assert got + flat(loader(again, after)) == names(order(101))


@pytest.mark.parametrize("shared_by", ["stream", "loader"])
def test_a_loop_by_hand(shared_by: str) -> None:
    """The row, or batch, in hand counts as used."""
    stream = RowStream(ROWS, batch_size=1 if shared_by == "stream" else 5)
    source: Any = stream if shared_by == "stream" else DataLoader(stream, batch_size=5, collate_fn=as_it_is)
    used: list[Any] = []
    for item in source:
        used += [item] if shared_by == "stream" else item
        if len(used) >= 50:
            break
    again = RowStream(ROWS)
    again.load_state_dict(stream.state_dict())
    assert used + list(again) == names(order(101))
    assert list(again) == names(order(101)), "a position is for one pass"


def test_the_end_of_an_epoch_is_a_position_too() -> None:
    made = loader(RowStream(ROWS, batch_size=4))
    list(made)
    state = made.state_dict()
    made.load_state_dict(state)
    made.set_epoch(0)
    assert list(made) == []
    made.load_state_dict(state)
    made.set_epoch(1)
    assert flat(made) == names(order(101, epoch=1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("taken", [0, 5, 26])
def test_torchdata(workers: int, every: int, taken: int) -> None:
    stateful = require_module("torchdata.stateful_dataloader").StatefulDataLoader

    def made() -> Any:
        stream = RowStream(ROWS, batch_size=4)
        return stateful(
            stream, batch_size=4, num_workers=workers, collate_fn=as_it_is, snapshot_every_n_steps=every
        )

    first, second = made(), made()
    it = iter(first)
    got = flat(islice(it, taken))
    state = first.state_dict()
    del it
    second.load_state_dict(copy.deepcopy(state))
    it = iter(second)
    more = flat(islice(it, 3))
    if taken < 26:
        assert got + more == names(order(101))[: len(got + more)]
    later = second.state_dict()
    del it
    for at, read in ((state, got), (later, got + more)):
        elsewhere = RowStream(ROWS, batch_size=7)
        elsewhere.load_state_dict(at)
        assert read + flat(loader(elsewhere, 3)) == names(order(101))


@pytest.mark.parametrize("persistent", [True, False])
def test_torchdata_over_epochs(persistent: bool) -> None:
    stateful = require_module("torchdata.stateful_dataloader").StatefulDataLoader
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "collate_fn": as_it_is}

    def made() -> tuple[RowStream, Any]:
        stream = RowStream(ROWS, batch_size=4)
        return stream, stateful(stream, **options, persistent_workers=persistent)

    stream, first = made()
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        assert flat(first) == names(order(101, epoch=epoch))
    stream.set_epoch(2)
    it = iter(first)
    got = flat(islice(it, 5))
    state = first.state_dict()
    del it, first
    stream, second = made()
    second.load_state_dict(state)
    stream.set_epoch(2)
    assert got + flat(second) == names(order(101, epoch=2))
    stream.set_epoch(3)
    assert flat(second) == names(order(101, epoch=3))


def test_the_state_of_one_of_torchdatas_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how far one of two workers was, which tells nothing where there are three."""
    state = RowStream(ROWS).state_dict() | {"taken": 4, "workers": 2}
    info = type("Info", (), {"id": 0, "num_workers": 3})()
    monkeypatch.setattr("kara_cache.torch.row_stream.get_worker_info", lambda: info)
    with pytest.raises(ValueError, match=r"one of 2 workers, here are 3: give the loader's whole state"):
        RowStream(ROWS).load_state_dict(state)


def test_a_plain_loader_with_workers_has_no_position() -> None:
    stream = RowStream(ROWS, batch_size=4)
    assert len(flat(DataLoader(stream, batch_size=4, num_workers=1, collate_fn=as_it_is))) == 101
    with pytest.raises(RuntimeError, match="ResumableLoader"):
        stream.state_dict()
    list(stream)
    assert stream.state_dict()["position"] == 101


@pytest.mark.parametrize(
    "other", [RowStream(MemoryRows(range(100))), RowStream(ROWS, shuffle=False)], ids=["rows", "shuffle"]
)
def test_the_state_of_something_else(other: RowStream) -> None:
    with pytest.raises(ValueError, match="the state is of 101 rows with shuffle=True"):
        other.load_state_dict(RowStream(ROWS).state_dict())


def test_a_billion_rows() -> None:
    class Numbers:
        def __len__(self) -> int:
            return 10**9

        def read_batch(self, indices: Sequence[int]) -> list[int]:
            return list(indices)

    stream = RowStream(Numbers(), batch_size=64, rank=3, world_size=8)
    state = {**stream.state_dict(), "position": 987_654_321}
    assert len(json.dumps(state)) < 200
    began = time.process_time()
    stream.load_state_dict(state)
    first = next(iter(stream))
    assert time.process_time() - began < 0.1  # of this process; the target of issue 3
    assert first == RowOrder(10**9, shuffle=True, seed=0, epoch=0).rows_at([987_654_324])[0]


# -- what is refused, and what passes between processes ----------------------------------------------------


def test_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        RowStream(ROWS, rank=1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        RowStream(ROWS, batch_size=0)
    with pytest.raises(ValueError, match="seed must be"):
        RowStream(ROWS, seed=-1)
    for made in (RowStream, RowMap, make_torch_dataset):
        with pytest.raises(TypeError, match=r"list has not both; MemoryRows\(sequence\)"):
            made([1, 2])
    with pytest.raises(ValueError, match="remainder"):
        RowStream(ROWS, remainder="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoch must be"):
        RowStream(ROWS).set_epoch(-1)
    with pytest.raises(TypeError, match="shuffle: of the RowStream"):
        ResumableLoader(RowStream(ROWS), shuffle=True)
    with pytest.raises(TypeError, match="needs a RowStream"):
        ResumableLoader(RowMap(ROWS))
    with pytest.raises(ValueError, match="101 rows, and batches of 5"):
        ResumableLoader(RowMap(ROWS), RowBatches(5, batch_size=1))
    with pytest.raises(ValueError, match="in_order"):
        ResumableLoader(RowStream(ROWS), num_workers=1, in_order=False)


@pytest.mark.parametrize("index", [101, -102])
def test_a_map_ends(index: int) -> None:
    rows = RowMap(ROWS)
    assert (rows[-1], rows[-101], rows[100]) == ("row 100", "row 0", "row 100")
    assert list(rows) == names(range(101))  # Python's own protocol: until IndexError
    with pytest.raises(IndexError, match="of 101"):
        rows[index]


def test_a_batch_is_one_read() -> None:
    class Counting(MemoryRows):
        reads = 0

        def read_batch(self, indices: Sequence[int]) -> list[Any]:
            self.reads += 1
            return super().read_batch(indices)

    rows = Counting(range(100))
    assert len(flat(DataLoader(RowMap(rows), batch_size=10, shuffle=True, collate_fn=as_it_is))) == 100
    assert rows.reads == 10


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_are_on_their_own(copied: Any) -> None:
    stream = RowStream(ROWS, batch_size=4)
    other = copied(stream)
    other.set_epoch(2)
    assert (stream.cursor.epoch, other.cursor.epoch) == (0, 2)
    made = loader(other, 2, persistent_workers=True)
    for epoch in (2, 5):  # the second of them reaches the workers through memory that the copy shares, too
        made.set_epoch(epoch)
        assert flat(made) == names(order(101, epoch=epoch))


def test_repr() -> None:
    stream = RowStream(ROWS, rank=1, world_size=2)
    list(islice(stream, 3))
    assert repr(stream) == "<RowStream epoch 0 at 6 of 101, rank 1 of 2>"
    assert repr(RowMap(ROWS)) == "<RowMap of 101 rows>"
    assert repr(RowBatches(5, batch_size=2)) == "<RowBatches epoch 0 at 0 of 5, rank 0 of 1>"


def test_ranks_come_from_torch_distributed(tmp_path: Any) -> None:
    code = f"""
import torch.distributed as distributed
from kara_cache.torch import MemoryRows, RowStream
before = RowStream(MemoryRows(range(5)))
distributed.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
assert list(RowStream(MemoryRows(range(5)), shuffle=False)) == [0, 1, 2, 3, 4]
distributed.get_world_size = lambda: 2
try:
    list(before)
except RuntimeError as error:
    print(error)
distributed.destroy_process_group()
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    ).stdout
    assert "now rank 0 of 2: make it after init_process_group" in said


LEFT_OPEN = """
import sys
from kara_cache.torch import *
def as_it_is(batch): return batch
if __name__ == "__main__":
    method, persistent = sys.argv[1:]
    stream = RowStream(MemoryRows([bytes(1000)] * 5000), batch_size=4, prefetch_bytes="100KiB")
    alone = iter(stream)  # and its thread waits for room
    next(alone)
    loader = ResumableLoader(
        stream, num_workers=2, collate_fn=as_it_is, persistent_workers=persistent == "yes",
        multiprocessing_context=method,
    )
    batches = iter(loader)
    next(batches)
    print("end", flush=True)
"""


@pytest.mark.parametrize(
    ("method", "persistent"),
    [
        ("fork", "yes"),
        ("spawn", "yes"),
        *(pytest.param(method, "no", marks=pytest.mark.slow) for method in METHODS),
        pytest.param("forkserver", "yes", marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_with_everything_left_open(tmp_path: Any, method: str, persistent: str) -> None:
    script = tmp_path / "left_open.py"
    script.write_text(LEFT_OPEN)
    done = subprocess.run(
        [sys.executable, script, method, persistent], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_importing_changes_nothing() -> None:
    code = (
        "import multiprocessing, sys, threading; import kara_cache; assert 'torch' not in sys.modules; "
        "kara_cache.make_torch_dataset; assert 'torch' in sys.modules; "
        "assert multiprocessing.get_start_method(allow_none=True) is None; "
        "assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
