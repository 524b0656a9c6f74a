"""The order of a RowStream as batches of row numbers, for map-style data sets."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from kara_cache.sampling import Remainder
from kara_cache.torch.epoch_cursor import EpochCursor


class RowBatches(Sampler):
    """A `batch_sampler`: this rank's batches of an epoch, in the same order as those of a `RowStream`.

    Arguments are as there; `rows` is the length of the data set. A `ResumableLoader` remembers how many of
    them it has delivered; a plain DataLoader asks for batches ahead of time and tells nobody.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        remainder: Remainder = "keep",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.cursor = EpochCursor(
            rows,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            rank=rank,
            world_size=world_size,
        )

    def __repr__(self) -> str:
        return f"<RowBatches {self.cursor}>"

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return -(-len(self.cursor.whole()) // self.cursor.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.cursor.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        part = self.cursor.part() if self.cursor.counted else self.cursor.begin()
        return part.batches()
