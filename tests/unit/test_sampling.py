from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from itertools import islice, pairwise, permutations
from math import factorial, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kara_cache import sampling
from kara_cache.sampling import (
    MAX_ROWS,
    MAX_SEED,
    Bookmark,
    Permutation,
    Remainder,
    RowOrder,
    Shard,
    epoch_end,
    order_of_1,
    order_of_2,
    window_of_2,
    worker_batches,
)

REMAINDERS: list[Remainder] = ["keep", "pad", "drop"]
seeds = st.integers(0, MAX_SEED)


@given(n=st.integers(0, 3000), seed=seeds, epoch=st.integers(0, 100))
def test_a_permutation_has_every_number_once(n: int, seed: int, epoch: int) -> None:
    order = Permutation(n, seed, epoch)
    assert sorted(order.take(range(n))) == list(range(n))
    assert len(order) == n


@given(n=st.integers(1, MAX_ROWS), seed=seeds, data=st.data())
def test_one_position_or_many_with_numpy_and_without(n: int, seed: int, data: st.DataObject) -> None:
    pytest.importorskip("numpy")
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=40))
    order = Permutation(n, seed)
    one_by_one = [order[position] for position in positions]
    assert order._take_vector(positions) == order.take(positions) == one_by_one
    assert all(0 <= number < n for number in one_by_one)


def test_golden_orders() -> None:
    """Part of the contract: a resumed job may run on another version of this library."""
    assert Permutation(10, 0).take(range(10)) == GOLDEN_10
    assert Permutation(10, 0, 1).take(range(10)) == GOLDEN_10_EPOCH_1
    assert Permutation(10**9, 7, 3).take(range(5 * 10**8, 5 * 10**8 + 4)) == GOLDEN_BILLION


GOLDEN_10 = [3, 6, 4, 0, 2, 1, 7, 9, 8, 5]
GOLDEN_10_EPOCH_1 = [4, 2, 7, 1, 5, 0, 3, 9, 6, 8]
GOLDEN_BILLION = [919404151, 160857920, 847540549, 70241781]


def test_orders_do_not_depend_on_the_process() -> None:
    code = "from kara_cache.sampling import Permutation as P; print([P(50, 4, 2)[i] for i in range(50)])"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert json.loads(out) == Permutation(50, 4, 2).take(range(50))


def chi_square_z(counts: Counter[object], cells: int, draws: int) -> float:
    """How many standard deviations the statistic is above its mean, under the hypothesis of uniformity."""
    expected = draws / cells
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    statistic += (cells - len(counts)) * expected
    return (statistic - (cells - 1)) / sqrt(2 * (cells - 1))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_order_of_a_few_rows_is_as_likely(n: int) -> None:
    draws = max(1000, 25 * factorial(n))
    counts = Counter(tuple(Permutation(n, seed).take(range(n))) for seed in range(draws))
    assert set(counts) == set(permutations(range(n)))
    assert chi_square_z(Counter(counts), factorial(n), draws) < 4


@pytest.mark.parametrize("n", [97, 1000, 4096])
def test_rows_go_to_positions_evenly(n: int) -> None:
    """Where the first, a middle and the last row come, and which row follows which, in buckets."""
    buckets, draws = 16, 1600
    where: list[Counter[object]] = [Counter() for _ in range(4)]
    for epoch in range(draws):
        order = Permutation(n, 5, epoch)
        first, middle, last, second = (order[at] for at in (0, n // 2, n - 1, 1))
        for counter, row in zip(where, (first, middle, last, (second - first) % n), strict=True):
            counter[row * buckets // n] += 1
    for counter in where:
        assert chi_square_z(counter, buckets, draws) < 5


def test_it_mixes_as_well_as_a_true_shuffle() -> None:
    """Ascents of a uniform order: mean (n - 1) / 2, variance (n + 1) / 12 (Knuth, TAOCP 3, 5.1.3)."""
    n, epochs = 10_000, 20
    ascents = 0
    for epoch in range(epochs):
        rows = Permutation(n, 1, epoch).take(range(n))
        ascents += sum(a < b for a, b in pairwise(rows))
    z = (ascents - epochs * (n - 1) / 2) / sqrt(epochs * (n + 1) / 12)
    assert abs(z) < 4


def test_seed_and_epoch_are_not_added_up() -> None:
    assert Permutation(1000, 3, 1).take(range(1000)) != Permutation(1000, 4, 0).take(range(1000))


def test_the_middle_of_a_billion_rows_at_once() -> None:
    began = time.process_time()
    RowOrder(10**9, shuffle=True, seed=1, epoch=3).rows_at(range(5 * 10**8, 5 * 10**8 + 128))
    assert time.process_time() - began < 0.1  # of this process alone, whatever else the machine does


@pytest.mark.parametrize(
    ("n", "seed", "epoch"), [(-1, 0, 0), (MAX_ROWS + 1, 0, 0), (5, -1, 0), (5, MAX_SEED + 1, 0), (5, 0, -1)]
)
def test_numbers_that_give_no_order(n: int, seed: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="between 0 and"):
        Permutation(n, seed, epoch)


@pytest.mark.parametrize("positions", [[10], [-1], list(range(40)), [-1] * 40])
def test_positions_outside(positions: list[int]) -> None:
    with pytest.raises(IndexError, match="of 10"):
        Permutation(10, 0).take(positions)


@given(
    rows=st.integers(0, 200),
    start=st.integers(0, 220),
    ranks=st.integers(1, 9),
    remainder=st.sampled_from(REMAINDERS),
)
def test_ranks_share_what_is_left(rows: int, start: int, ranks: int, remainder: Remainder) -> None:
    parts = [Shard(index, ranks).positions(rows, start, remainder) for index in range(ranks)]
    left = max(0, rows - start)
    end = epoch_end(rows, start, ranks, remainder)
    assert sorted(position for part in parts for position in part) == list(range(start, end))
    lengths = {len(part) for part in parts}
    if remainder == "keep":
        assert end - start == left
        assert max(lengths) - min(lengths) <= 1
    else:
        assert len(lengths) == 1
        assert 0 <= (end - start - left if remainder == "pad" else left - (end - start)) < ranks


def test_a_wrong_remainder() -> None:
    with pytest.raises(ValueError, match="keep, pad, drop, got 'half'"):
        epoch_end(10, 0, 2, "half")  # type: ignore[arg-type]


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_a_wrong_shard(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="below count"):
        Shard(index, count)


@given(
    length=st.integers(0, 100),
    batch_size=st.integers(1, 12),
    workers=st.integers(1, 5),
    step=st.integers(1, 3),
)
def test_workers_in_turns_make_the_batches_of_one(
    length: int, batch_size: int, workers: int, step: int
) -> None:
    positions = range(7, 7 + length * step, step)
    of = [list(worker_batches(positions, batch_size, worker, workers)) for worker in range(workers)]
    in_turns = [of[turn % workers][turn // workers] for turn in range(sum(map(len, of)))]
    assert in_turns == list(worker_batches(positions, batch_size, 0, 1))
    assert [position for batch in in_turns for position in batch] == list(positions)


@given(rows=st.integers(1, 100), shuffle=st.booleans())
def test_padding_is_the_first_rows_again(rows: int, shuffle: bool) -> None:
    order = RowOrder(rows, shuffle=shuffle, seed=1, epoch=2)
    once = order.rows_at(range(rows))
    assert order.rows_at(range(3 * rows)) == once * 3
    assert shuffle or once == list(range(rows))


@given(rows=st.integers(0, MAX_ROWS), seed=seeds, shuffle=st.booleans(), epoch=seeds, data=st.data())
def test_a_bookmark_is_small(rows: int, seed: int, shuffle: bool, epoch: int, data: st.DataObject) -> None:
    bookmark = Bookmark(rows, seed, shuffle, epoch, data.draw(st.integers(0, rows)))
    text = json.dumps(bookmark.to_dict())
    assert len(text) < 200
    assert Bookmark.from_dict(json.loads(text)) == bookmark


@pytest.mark.parametrize("change", [{"kara_rows": None}, {"position": -1}, {"epoch": "1"}, {"seed": True}])
def test_a_foreign_state(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not the state"):
        Bookmark.from_dict(Bookmark(10, 0, True, 0, 5).to_dict() | change)


# -- the published orders: recorded from kara-storage 2.1.5, and all of a grid in tests/clients ------------


def pool_of_rows(rows: int, seed: int, epoch: int, buffer_size: int) -> list[int]:
    """The published algorithm as it is written down, on rows that come one by one."""
    generator, source = random.Random(epoch + seed), iter(range(rows))
    pool, out = list(islice(source, buffer_size)), []
    while pool:
        index = int(generator.random() * len(pool))
        out.append(pool[index])
        row = next(source, None)
        if row is None:
            pool[index] = pool[-1]
            pool.pop()
        else:
            pool[index] = row
    return out


@given(
    rows=st.integers(0, 300),
    seed=st.integers(-5, 50),
    epoch=st.integers(0, 9),
    buffer_size=st.integers(1, 99),
)
def test_order_of_2_is_the_published_one(rows: int, seed: int, epoch: int, buffer_size: int) -> None:
    order = list(order_of_2(rows, seed=seed, epoch=epoch, buffer_size=buffer_size))
    assert order == pool_of_rows(rows, seed, epoch, buffer_size)
    assert sorted(order) == list(range(rows))


@pytest.mark.parametrize(("rows", "buffer_size"), [(70_000, 65_537), (9000, 8), (4097 + 15, 4096)])
def test_order_of_2_in_large_steps(rows: int, buffer_size: int) -> None:
    order = list(order_of_2(rows, seed=3, buffer_size=buffer_size))
    assert order == pool_of_rows(rows, 3, 0, buffer_size)


def buffer_of_rows(rows: int, seed: int, epoch: int, buffer_size: int, shuffle_ratio: float) -> list[int]:
    """The documented algorithm of 1.x on rows that come one by one."""
    generator, source = random.Random(seed + epoch), iter(range(rows))
    fetch, out = int(buffer_size * shuffle_ratio), []
    buffer = list(islice(source, buffer_size - fetch))
    while True:
        buffer += islice(source, fetch)
        count = min(fetch, len(buffer))
        if not count:
            return out
        for index in range(count):
            other = int(generator.random() * len(buffer))
            buffer[index], buffer[other] = buffer[other], buffer[index]
        out += buffer[:count]
        buffer = buffer[count:]


@given(
    rows=st.integers(0, 300),
    seed=st.integers(-5, 50),
    epoch=st.integers(0, 9),
    buffer_size=st.integers(4, 99),
    shuffle_ratio=st.floats(0.5, 1),
)
def test_order_of_1_is_the_documented_one(
    rows: int, seed: int, epoch: int, buffer_size: int, shuffle_ratio: float
) -> None:
    order = list(
        order_of_1(rows, seed=seed, epoch=epoch, buffer_size=buffer_size, shuffle_ratio=shuffle_ratio)
    )
    assert order == buffer_of_rows(rows, seed, epoch, buffer_size, shuffle_ratio)
    assert sorted(order) == list(range(rows))


@pytest.mark.parametrize(
    ("buffer_size", "shuffle_ratio"), [(10, 0.1), (10, 0.0), (0, 0.5), (10, 1.5), (10, -1)]
)
def test_ratios_that_give_no_order(buffer_size: int, shuffle_ratio: float) -> None:
    with pytest.raises(ValueError, match="Shuffle ratio is too small"):
        next(order_of_1(5, buffer_size=buffer_size, shuffle_ratio=shuffle_ratio))


def test_a_pool_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(order_of_2(5, buffer_size=0))


def test_the_published_split_reads_some_rows_never() -> None:
    assert [window_of_2(11, Shard(rank, 3)) for rank in range(3)] == [range(3), range(3, 6), range(7, 10)]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; from kara_cache import sampling; "
        "assert 'torch' not in sys.modules; print(sampling.Permutation(3, 1)[0])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
    assert sampling.ROUNDS == 24
