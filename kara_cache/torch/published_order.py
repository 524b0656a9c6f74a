"""`make_torch_dataset` of the published kara-storage: its arguments and its orders, without its traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from kara_cache.sampling import order_of_1, window_of_2
from kara_cache.torch.epoch_cursor import rank_shard
from kara_cache.torch.pooled_rows import Pool, RangedRows
from kara_cache.torch.row_prefetch import RowPrefetch
from kara_cache.torch.rows import Rows, check_rows

_PREFETCH_BYTES = 32 << 20
Shuffled = Callable[..., Iterator[int]]


def make_torch_dataset(
    ds: Rows,
    shuffle: bool = False,
    auto_distributed: bool = True,
    *,
    seed: int | None = None,
    buffer_size: int | None = None,
    shuffle_ratio: float | None = None,
    begin: int = 0,
    end: int | None = None,
) -> PublishedOrder:
    """Rows in the order in which kara-storage hands them out for the same arguments.

    Args:
        shuffle: As version 2.x shuffles, with `seed` (0) and `buffer_size` (4096 rows); with
            `shuffle_ratio`, as 1.x is documented to, with a `buffer_size` of 10240.
        auto_distributed: Under `torch.distributed` this rank reads its part as 2.x cuts it: the rows that
            ranks do not divide are read by nobody. `RowStream` loses none.
        begin, end: Only rows `begin` to `end - 1`; the number of rows where `end` is None or larger.

    Raises:
        TypeError: seed, buffer_size or shuffle_ratio without shuffle, as in 2.x; unknown names; no rows.
        ValueError: numbers that give no order.
    """
    check_rows(ds)
    given = {"seed": seed, "buffer_size": buffer_size, "shuffle_ratio": shuffle_ratio}
    wanted: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if wanted and not shuffle:
        raise TypeError(f"{', '.join(wanted)}: only with shuffle=True")
    rows = len(ds)
    window = range(rows)[begin : rows if end is None else end]
    if begin < 0 or (end is not None and end < begin):
        raise ValueError(f"begin and end must be 0 <= begin <= end, got {begin=} and {end=}")
    if auto_distributed:
        part = window_of_2(len(window), rank_shard())
        window = window[part.start : part.stop]
    if not shuffle:
        return PublishedOrder(ds, window, None)
    if shuffle_ratio is not None:
        return PublishedOrder(ds, window, partial(order_of_1, **wanted))
    return PublishedOrder(ds, window, Pool(**wanted))


class PublishedOrder(IterableDataset):
    """Iterating is a whole pass, and leaves the caller's data set as it is.

    With loader workers every one of them makes the whole order, which is row numbers only, and reads its
    turns of it, of `batch_size` rows each. So every row comes once, and the same way each time. Set the
    attribute `batch_size` (1) to the loader's, and the order is the same for any number of workers.
    """

    def __init__(self, rows: Rows, window: range, order: Shuffled | None) -> None:
        super().__init__()
        self.rows = rows
        self.batch_size = 1
        self._window = window
        self._order = order
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that persist see it change
        if order is not None:
            next(order(0), None)  # refuses wrong numbers now

    def __repr__(self) -> str:
        return f"<PublishedOrder of rows {self._window.start} to {self._window.stop - 1}>"

    def __len__(self) -> int:
        return len(self._window)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass, also in workers that persist."""
        self._epoch[0] = epoch

    def __iter__(self) -> Iterator[Any]:
        epoch, worker = int(self._epoch), get_worker_info()
        if worker is not None and worker.num_workers > 1:
            numbers = _turns(self._numbers(epoch), self.batch_size, worker.id, worker.num_workers)
            return iter(RowPrefetch(self.rows, numbers, limit_bytes=_PREFETCH_BYTES))
        return self._one_after_the_other(epoch) or iter(
            RowPrefetch(self.rows, self._numbers(epoch), limit_bytes=_PREFETCH_BYTES)
        )

    def _one_after_the_other(self, epoch: int) -> Iterator[Any] | None:
        """Where one process reads all rows, in whatever order it hands them out; None where that costs more.

        From a store a pass in sequence is several times as fast as rows by their numbers. In a mapping it is
        not, and rows that wait in a pool are copied to memory that is far from the processor.
        """
        rows, window = self.rows, self._window
        if not isinstance(rows, RangedRows):
            return None
        if self._order is None:
            return chain.from_iterable(rows.fetch_range(window.start, window.stop))
        if rows.mapped or not isinstance(self._order, Pool):
            return None
        if self._order.bytes_of(rows, window) > _PREFETCH_BYTES:
            return None
        return self._order.pass_over(rows, window, epoch=epoch)

    def _numbers(self, epoch: int) -> Iterator[int]:
        if self._order is None:
            return iter(self._window)
        order, first = self._order(len(self._window), epoch=epoch), self._window.start
        return map(first.__add__, order) if first else order


def _turns(numbers: Iterator[int], batch_size: int, worker: int, workers: int) -> Iterator[int]:
    turn = 0
    while batch := list(islice(numbers, batch_size)):
        if turn % workers == worker:
            yield from batch
        turn += 1
