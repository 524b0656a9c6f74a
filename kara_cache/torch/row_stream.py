"""An iterable data set: a global shuffle without a buffer, exact resume, and reads in the coming order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from kara_cache.quantity import parse_bytes
from kara_cache.sampling import Bookmark, Remainder, Shard
from kara_cache.torch.epoch_cursor import EpochCursor, EpochPart
from kara_cache.torch.row_prefetch import RowPrefetch
from kara_cache.torch.rows import Rows, check_rows

_TAKEN = "taken"
_WORKERS = "workers"


class RowStream(IterableDataset):
    """Each row once per epoch, over all ranks and loader workers; the order is one for any number of them.

    Args:
        batch_size: The loader's. Its workers take turns by batches, so that with the same number here the
            order does not depend on how many they are; with another one each row still comes once.
        seed, shuffle: Epochs of one seed have unrelated orders. Without `shuffle` rows come by number.
        remainder: What becomes of rows that ranks do not divide: "keep" (some ranks have one more), "pad"
            (the first ones come again) or "drop".
        rank, world_size: Of `torch.distributed` where they are not given.
        prefetch_bytes: About how much is read ahead in each process that iterates; 0: nothing, no thread.
        decode: Called with each row where it is used: in the worker, when it is due.

    Every `iter` is a whole pass over the epoch that `set_epoch` chose (0), the same order again unless it is
    called, as with DistributedSampler; only the first after `load_state_dict` goes on at a position.
    The position counts what was used: without workers each row that this iterated over, with them the
    batches that a `ResumableLoader` or torchdata's StatefulDataLoader has handed out.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        remainder: Remainder = "keep",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch_bytes: int | str = "32MiB",
        decode: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        check_rows(rows)
        self.rows = rows
        self.cursor = EpochCursor(
            len(rows),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            rank=rank,
            world_size=world_size,
        )
        self._prefetch_bytes = parse_bytes(prefetch_bytes)
        self._decode = decode
        self._resumed: tuple[Bookmark, int] | None = None  # in a worker: where it goes on, rows it had taken
        self._running: tuple[EpochPart, int, int] | None = None  # in a worker: its pass, workers, rows taken

    def __repr__(self) -> str:
        return f"<RowStream {self.cursor}>"

    def __len__(self) -> int:
        """Rows of a whole epoch on this rank."""
        return len(self.cursor.whole())

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; reaches loader workers that persist, from their next pass on."""
        self.cursor.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is not None:
            self.cursor.read_by_worker()
            return self._in_worker(worker.id, worker.num_workers)
        if self.cursor.counted:
            return self._read(self.cursor.part())
        return self._in_process(self.cursor.begin())

    def _in_process(self, part: EpochPart) -> Iterator[Any]:
        for taken, row in enumerate(self._read(part), 1):
            self.cursor.taken = (part, taken)
            yield row
        self.cursor.reached(part.end)

    def _in_worker(self, worker: int, workers: int) -> Iterator[Any]:
        part, skip = self.cursor.part(), 0
        if self._resumed is not None:
            at, skip = self._resumed
            part = replace(part, seed=at.seed, epoch=at.epoch, start=at.position)
            self._resumed = None
        self._running = (part, workers, skip)
        return self._counted(part, worker, workers, skip)

    def _counted(self, part: EpochPart, worker: int, workers: int, skip: int) -> Iterator[Any]:
        for taken, row in enumerate(self._read(part, worker, workers, skip), skip + 1):
            self._running = (part, workers, taken)
            yield row

    def _read(self, part: EpochPart, worker: int = 0, workers: int = 1, skip: int = 0) -> Iterator[Any]:
        order = chain.from_iterable(part.batches(worker, workers, skip))
        found = iter(RowPrefetch(self.rows, order, limit_bytes=self._prefetch_bytes))
        return found if self._decode is None else map(self._decode, found)

    # -- going on later ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Less than 200 bytes as JSON; the same on every rank between two steps.

        In a loader's worker, where torchdata asks: of that worker alone.
        """
        if self._running is None:
            return self.cursor.state_dict()
        part, workers, taken = self._running
        at = Bookmark(part.rows, part.seed, part.shuffle, part.epoch, part.start)
        own = {"batch_size": part.batch_size, "rank": part.shard.index, "ranks": part.shard.count}
        return at.to_dict() | own | {_TAKEN: taken, _WORKERS: workers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass goes on where `state` was taken, with any number of ranks and workers.

        It is what this class, a `ResumableLoader` or torchdata's StatefulDataLoader returned. The latter can
        only go on by itself with as many workers as it had; given to this method of a new stream, its state
        goes on with any number.
        """
        worker = get_worker_info()
        if worker is not None and _TAKEN in state:
            if state[_WORKERS] != worker.num_workers:
                raise ValueError(
                    f"state of one of {state[_WORKERS]} workers, here are {worker.num_workers}: give the "
                    "loader's whole state to RowStream.load_state_dict instead"
                )
            self._resumed = (self.cursor.bookmark_of(state), state[_TAKEN])
        elif "_iterator_finished" in state:
            self._load_torchdata(state)
        else:
            self.cursor.load_state_dict(state)

    def _load_torchdata(self, state: Mapping[str, Any]) -> None:
        """Of torchdata 0.11: of one process, or a snapshot of each worker and the batches since then."""
        if "_snapshot" not in state:
            self.cursor.load_state_dict(state["dataset_state"])
            return
        workers = [each["dataset_state"] for each in state["_snapshot"]["_worker_snapshots"].values()]
        at, one = self.cursor.bookmark_of(workers[0]), workers[0]
        part = replace(
            self.cursor.part(),
            start=at.position,
            batch_size=one["batch_size"],
            shard=Shard(one["rank"], one["ranks"]),
        )
        position = part.after(sum(worker[_TAKEN] for worker in workers))
        position += state["_steps_since_snapshot"] * part.batch_size * part.shard.count
        self.cursor.load_state_dict(one | {"position": min(position, part.end)})
