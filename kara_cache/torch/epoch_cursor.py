"""Which epoch is read, from where, and how far it has come: shared by streams, batch orders and loaders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch.utils.data import get_worker_info

from kara_cache.sampling import (
    MAX_SEED,
    Bookmark,
    Remainder,
    RowOrder,
    Shard,
    epoch_end,
    worker_batches,
)

_BLOCK = 1024  # row numbers made at once; by the vector they cost a thirtieth
_EPOCH, _SEED, _START, _UNCOUNTED = range(4)


def rank_shard(rank: int | None = None, world_size: int | None = None) -> Shard:
    """These, or this process's rank in `torch.distributed`, or all of it where that is not initialised."""
    if rank is not None and world_size is not None:
        return Shard(rank, world_size)
    if rank is not None or world_size is not None:
        raise ValueError(f"rank and world_size go together, got {rank=} and {world_size=}")
    if distributed.is_available() and distributed.is_initialized():
        return Shard(distributed.get_rank(), distributed.get_world_size())
    return Shard()


@dataclass(frozen=True, slots=True)
class EpochPart:
    """This rank's part of an epoch that all ranks go on with at `start`; does not change."""

    rows: int
    shuffle: bool
    seed: int
    epoch: int
    start: int
    shard: Shard
    remainder: Remainder
    batch_size: int

    @property
    def positions(self) -> range:
        return self.shard.positions(self.rows, self.start, self.remainder)

    @property
    def end(self) -> int:
        return epoch_end(self.rows, self.start, self.shard.count, self.remainder)

    def batches(self, worker: int = 0, workers: int = 1, skip: int = 0) -> Iterator[list[int]]:
        """Row numbers of the batches that one of the loader's workers makes, without the first `skip`."""
        order = RowOrder(self.rows, shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        batches = worker_batches(self.positions, self.batch_size, worker, workers)
        while block := _block(batches):
            numbers = order.rows_at([position for batch in block for position in batch])
            at = 0
            for batch in block:
                row_numbers = numbers[at : at + len(batch)]
                at += len(batch)
                yield row_numbers[skip:]
                skip = max(0, skip - len(batch))

    def after(self, taken: int) -> int:
        """The epoch's position when this rank has used `taken` rows, and the others as many batches."""
        batches, rest = divmod(taken, self.batch_size)
        if rest and taken == len(self.positions):  # its last batch, which other ranks may have longer
            batches, rest = batches + 1, 0
        return self.after_batches(batches, rest)

    def after_batches(self, batches: int, rest: int = 0) -> int:
        return min(self.end, self.start + (batches * self.batch_size + rest) * self.shard.count)


def _block(batches: Iterator[range]) -> list[Sequence[int]]:
    block: list[Sequence[int]] = []
    count = 0
    for batch in batches:
        block.append(batch)
        count += len(batch)
        if count >= _BLOCK:
            break
    return block


class EpochCursor:
    """Epoch, seed and start are in memory that loader workers share: those that persist see `set_epoch`."""

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        remainder: Remainder,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, got {seed}")
        self.rows = rows
        self.shuffle = shuffle
        self.remainder: Remainder = remainder
        self.batch_size = batch_size
        self.shard = rank_shard(rank, world_size)
        self._rank_given = rank is not None
        self.counted = False  # by a loader, which knows what it has delivered
        self._loaded: int | None = None
        self._position = 0
        self.taken: tuple[EpochPart, int] | None = None  # rows of a part, which say where it is, if it is set
        self._shared = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._shared[_SEED] = seed
        epoch_end(rows, 0, self.shard.count, remainder)  # refuses a wrong remainder now

    def __repr__(self) -> str:
        rank = f"rank {self.shard.index} of {self.shard.count}"
        return f"epoch {self.epoch} at {self.position} of {self.rows}, {rank}"

    @property
    def epoch(self) -> int:
        return int(self._shared[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """The epoch to read next. A position that was loaded stays when it is one of this epoch."""
        if not 0 <= epoch <= MAX_SEED:
            raise ValueError(f"epoch must be between 0 and 2**63 - 1, got {epoch}")
        if epoch != self.epoch:
            self._shared[_EPOCH] = epoch
            self._go_to(0, loaded=None)

    def begin(self) -> EpochPart:
        """The next pass over the epoch, from a position that was loaded for it or from its begin."""
        self._check_rank()
        self._go_to(self._loaded or 0, loaded=None)
        self._shared[_UNCOUNTED] = 0
        return self.part()

    def part(self) -> EpochPart:
        """What the pass is over that has begun, also in a worker process."""
        seed, start = int(self._shared[_SEED]), int(self._shared[_START])
        return EpochPart(
            self.rows, self.shuffle, seed, self.epoch, start, self.shard, self.remainder, self.batch_size
        )

    def whole(self) -> range:
        """This rank's positions of a whole epoch."""
        return self.shard.positions(self.rows, 0, self.remainder)

    def reached(self, position: int) -> None:
        self._position = position
        self.taken = None

    @property
    def position(self) -> int:
        """Where the ranks are in the epoch, when they are where this one is."""
        if self.taken is None:
            return self._position
        part, taken = self.taken
        return part.after(taken)

    def read_by_worker(self) -> None:
        """Called in a loader's worker: unless the loader counts, nobody here learns what is delivered."""
        if not self.counted:
            self._shared[_UNCOUNTED] = 1

    def state_dict(self) -> dict[str, Any]:
        """Raises RuntimeError where rows went to a loader that did not tell what it delivered."""
        if get_worker_info() is None and int(self._shared[_UNCOUNTED]) and not self.counted:
            raise RuntimeError(
                "workers of a plain DataLoader read these rows, and it does not tell what it has delivered: "
                "use kara_cache.torch.ResumableLoader, or the state_dict of torchdata's StatefulDataLoader"
            )
        seed = int(self._shared[_SEED])
        return Bookmark(self.rows, seed, self.shuffle, self.epoch, self.position).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, with its seed; ranks, workers and batch size may be others."""
        at = self.bookmark_of(state)
        self._shared[_EPOCH] = at.epoch
        self._shared[_SEED] = at.seed
        self._shared[_UNCOUNTED] = 0
        self._go_to(at.position, loaded=at.position)

    def bookmark_of(self, state: Mapping[str, Any]) -> Bookmark:
        """Raises ValueError where `state` is of other rows or of another kind of order."""
        at = Bookmark.from_dict(state)
        if (at.rows, at.shuffle) != (self.rows, self.shuffle):
            raise ValueError(
                f"the state is of {at.rows} rows with shuffle={at.shuffle}, "
                f"here are {self.rows} with shuffle={self.shuffle}"
            )
        return at

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared.share_memory_()  # a plain pickle or a deepcopy made it private

    def _go_to(self, position: int, *, loaded: int | None) -> None:
        self._shared[_START] = position
        self.reached(position)
        self._loaded = loaded

    def _check_rank(self) -> None:
        if not self._rank_given and (now := rank_shard()) != self.shard:
            raise RuntimeError(
                f"made as rank {self.shard.index} of {self.shard.count}, and this process is now rank "
                f"{now.index} of {now.count}: make it after init_process_group, or give rank and world_size"
            )
