"""A DataLoader that knows what it has delivered, and goes on there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from kara_cache.torch.epoch_cursor import EpochCursor, EpochPart
from kara_cache.torch.row_batches import RowBatches
from kara_cache.torch.row_stream import RowStream


class ResumableLoader(DataLoader):
    """A DataLoader over a `RowStream`, or over a map-style data set with `RowBatches`.

    Batches count when the loop gets them: what workers had prefetched when the process died is read again
    after the resume, and nothing twice. The state is the same on every rank between two steps, is less than
    200 bytes as JSON, and goes on with any number of ranks and workers and any batch size.

    Args:
        dataset, batch_sampler: A RowStream alone, or any map-style data set and its RowBatches.
        options: Of DataLoader, such as num_workers, collate_fn and persistent_workers.
    """

    def __init__(self, dataset: Any, batch_sampler: RowBatches | None = None, **options: Any) -> None:
        _refuse(options)
        if isinstance(dataset, RowStream) and batch_sampler is None:
            self._cursor: EpochCursor = dataset.cursor
            super().__init__(dataset, batch_size=dataset.cursor.batch_size, **options)
        elif isinstance(batch_sampler, RowBatches) and not isinstance(dataset, RowStream):
            if len(dataset) != batch_sampler.cursor.rows:
                raise ValueError(f"{len(dataset)} rows, and batches of {batch_sampler.cursor.rows}")
            self._cursor = batch_sampler.cursor
            super().__init__(dataset, batch_sampler=batch_sampler, **options)
        else:
            raise TypeError("needs a RowStream, or a map-style data set and batch_sampler=RowBatches(...)")

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass; a position that was loaded stays when it is one of this epoch."""
        self._cursor.set_epoch(epoch)

    @property
    def epoch(self) -> int:
        return self._cursor.epoch

    def __iter__(self) -> Any:
        part = self._cursor.begin()
        self._cursor.counted = True  # workers are told so when they are started
        try:
            batches = super().__iter__()
        finally:
            self._cursor.counted = False
        return self._deliver(part, batches)

    def _deliver(self, part: EpochPart, batches: Any) -> Iterator[Any]:
        for delivered, batch in enumerate(batches, 1):
            self._cursor.reached(part.after_batches(delivered))
            yield batch
        self._cursor.reached(part.end)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop is: every batch that it got counts, also the one that it is working on."""
        return self._cursor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass goes on where `state` was taken. Raises ValueError where it is of other rows."""
        self._cursor.load_state_dict(state)


def _refuse(options: Mapping[str, Any]) -> None:
    given = sorted(options.keys() & {"batch_size", "shuffle", "sampler"})
    if given:
        raise TypeError(f"{', '.join(given)}: of the RowStream or of RowBatches, not of the loader")
    if not options.get("in_order", True):
        raise ValueError("in_order=False: the position counts batches in their order")
