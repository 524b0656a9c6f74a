"""Rows as bytes, by number, each compared with its checksum where there is one."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

from kara_cache.errors import FormatError
from kara_cache.storage.rows.byte_stream import open_byte_stream
from kara_cache.storage.rows.mapped_bytes import MappedBytes
from kara_cache.storage.rows.row_sums import UNKNOWN, flushed_rows, read_sums, row_sum, sums_of
from kara_cache.storage.rows.row_version import RowVersion
from kara_cache.storage.rows.torn_tail import UNWRITTEN_BYTES
from kara_cache.storage.rows.words import WORD, PagedWords, Words, close_unless_paged, close_words, words

Row = bytes | memoryview
_FEW = 32  # indices for which a loop is faster than numpy; measured


class RowReader:
    """The rows that were there when it was opened. Thread-safe, usable in a forked child.

    Rows of a local data set are bytes, of a remote one views, or bytes too where pages of this host have
    some of those that were asked for. A row that differs from its checksum is a
    FormatError that names it. Close it once for each `retain`, and once more.
    """

    def __init__(self, version: RowVersion, *, count: int | None = None, verify: bool = True) -> None:
        """`count` leaves out rows that were appended since somebody else looked."""
        self.version = version
        self._users = 1
        # The index first: what it speaks of is in the data, however much is appended meanwhile.
        index = open_byte_stream(version.location, version.index)
        self._ends: Words = words(index, 0, index.size // WORD, "q")
        close_unless_paged(index, self._ends)
        self._data = open_byte_stream(version.location, version.data)
        self._sums: Words = memoryview(b"").cast("Q")
        if verify:
            sums = open_byte_stream(version.location, version.sums)
            self._sums = read_sums(sums, version)
            close_unless_paged(sums, self._sums)
        self.count = self._checked_count(count)
        self._summed = min(len(self._sums), self.count)
        self._arrays: tuple[Any, Any] | None = None  # ends and sums, for numpy
        self._read = self._data.read

    def __repr__(self) -> str:
        return f"<RowReader {self.count} rows, {self._summed} with checksums, {self.version}>"

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return self._ends[self.count - 1] if self.count else 0

    @property
    def mapped(self) -> bool:
        return isinstance(self._data, MappedBytes)

    def row_function(self) -> Callable[[int], Row]:
        """A function that returns row `number`, which must be in [0, count).

        It has all it needs in local variables, which takes half the time of a method, and so keeps the
        files mapped. It is not kept here: a cycle would keep them until the collector comes.
        """
        slow, ends, sums, read = self._slow_row, self._ends, self._sums, self._data.read
        if self._summed < self.count:
            return slow
        if isinstance(self._data, MappedBytes):
            if len(self._data.segments) == 1:
                only = self._data.segments[0]

                def whole(number: int) -> Row:
                    found = only[ends[number - 1] : ends[number]]
                    return found if row_sum(found) == sums[number] else slow(number)  # row 0, and damage

                return whole
            parts, bases, cuts = self._data.parts, self._data.bases, self._data.ends

            def mapped(number: int) -> Row:
                start = ends[number - 1]
                segment = bisect_right(cuts, start)
                base = bases[segment]
                found = parts[segment][start - base : ends[number] - base]
                # Row 0, a row that goes on in the next segment, and damage
                return found if row_sum(found) == sums[number] else slow(number)

            return mapped

        at_hand = self._data.read_summed

        def anywhere(number: int) -> Row:
            if not number:
                return slow(number)
            start, stop, wanted = ends[number - 1], ends[number], sums[number]
            held = at_hand((start,), (stop,), (wanted,))
            if held is not None and held[0] is not None:
                return held[0]
            found = read(start, stop)
            return found if row_sum(found) == wanted else slow(number)

        return anywhere

    def _slow_row(self, number: int) -> Row:
        start = self._ends[number - 1] if number else 0
        stop = self._ends[number]
        if not start <= stop <= self._data.size:
            raise self._no_row(number)
        found = self._read(start, stop)
        if number < self._summed and row_sum(found) != self._sums[number]:
            self._compare([number], [found])
        return found

    def bytes_function(self) -> Callable[[int], bytes]:
        """The same, for callers that want no views."""
        row = self.row_function()
        if isinstance(self._data, MappedBytes):
            return cast(Callable[[int], bytes], row)  # they are bytes
        return lambda number: bytes(row(number))

    def rows(self, start: int, stop: int) -> Sequence[Row]:
        """Rows [start, stop), which must be in [0, count]."""
        if start >= stop:
            return []
        cuts = self._ends[start - 1 : stop].tolist() if start else [0, *self._ends[:stop].tolist()]
        try:
            found = self._cut(cuts)
        except ValueError as exc:
            raise self._misplaced(range(start, stop)) or exc from exc
        if stop <= self._summed:
            if list(map(row_sum, found)) != self._sums[start:stop].tolist():
                self._compare(range(start, stop), found)
        else:
            self._check(range(start, stop), found, cuts[:-1], cuts[1:])
        return found

    def gather(self, numbers: Sequence[int]) -> Sequence[Row]:
        """These rows, in this order; `numbers` must be in [0, count)."""
        return self.fetch(numbers)[0]

    def fetch(self, numbers: Sequence[int]) -> tuple[Sequence[Row], bool]:
        """The same, and whether they were at hand, so that nobody was waited for."""
        if isinstance(self._ends, PagedWords):
            starts, stops, wanted = self._look_up_paged(self._ends, numbers)
        elif len(numbers) < _FEW:
            numbers = getattr(numbers, "tolist", lambda: numbers)()
            starts, stops, wanted = self._look_up(numbers)
        else:
            starts, stops, wanted = self._look_up_many(numbers)
        if wanted is not None:
            held = self._data.read_summed(starts, stops, wanted)
            if held is not None:
                return self._completed(numbers, held, starts, stops), None not in held
        try:
            found = self._data.read_spans(starts, stops)
        except ValueError as exc:
            raise self._misplaced(numbers) or exc from exc
        if wanted is not None:
            if list(map(row_sum, found)) != wanted:
                self._compare(numbers, found)
        else:
            self._check(numbers, found, starts, stops)
        return found, self.mapped

    def _completed(
        self, numbers: Sequence[int], found: list[bytes | None], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes]:
        """Those found, and read anew those that are not at hand or may be damaged."""
        left = [at for at, row in enumerate(found) if row is None]
        if left:
            missing = [numbers[at] for at in left]
            try:
                rest = self._data.read_spans([starts[at] for at in left], [stops[at] for at in left])
            except ValueError as exc:
                raise self._misplaced(missing) or exc from exc
            self._compare(missing, rest)
            found = [*found]
            for at, row in zip(left, rest, strict=True):
                found[at] = bytes(row)
        return cast(list[bytes], found)

    def read_into(self, number: int, buffer: memoryview | bytearray) -> int:
        """Row `number` into the start of `buffer`: how many bytes it has. ValueError if it has no room."""
        start = self._ends[number - 1] if number else 0
        length = self._ends[number] - start
        if not 0 <= length <= self._data.size - start:
            raise self._no_row(number)
        with memoryview(buffer) as given, given.cast("B") as view:
            if len(view) < length:
                raise ValueError(f"row {number} has {length} bytes, the buffer {len(view)}")
            with view[:length] as part:
                if self._data.read_into(start, part) != length:
                    raise self._no_row(number)
                self._compare([number], [part])
        return length

    def batches(self, start: int, stop: int, size_bytes: int, limit: int = 4096) -> Iterator[tuple[int, int]]:
        """Cuts [start, stop) into ranges of about `size_bytes`, of at least one row and at most `limit`."""
        ends = self._ends
        while start < stop:
            before = ends[start - 1] if start else 0
            last = bisect_right(ends, before + size_bytes, start, min(stop, start + limit))
            last = max(last, start + 1)
            yield start, last
            start = last

    def size_of(self, start: int, stop: int) -> int:
        """Bytes of rows [start, stop), by the index."""
        if start >= stop:
            return 0
        return int(self._ends[stop - 1] - (self._ends[start - 1] if start else 0))

    def damage(self, start: int, stop: int) -> Iterator[tuple[int, str]]:
        """The damaged ones of rows [start, stop), and what is wrong with each."""
        row = self.row_function()
        for number in range(start, stop):
            try:
                row(number)
            except FormatError as exc:  # noqa: PERF203 - a file read each
                yield number, str(exc)

    def known(self, start: int, stop: int) -> int:
        """How many of rows [start, stop) have a checksum."""
        sums = self._sums[start : min(stop, self._summed)].tolist() if start < self._summed else []
        return len(sums) - sums.count(UNKNOWN)

    def retain(self) -> RowReader:
        """For one more user."""
        self._users += 1
        return self

    def close(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._data.close()
            close_words(self._ends)
            close_words(self._sums)

    def _cut(self, cuts: Sequence[int]) -> Sequence[Row]:
        """What lies between each two neighbours of `cuts`."""
        if isinstance(self._data, MappedBytes):
            return self._data.cut(cuts)
        first = cuts[0]
        block = memoryview(self._data.read(first, cuts[-1]))
        return [block[start - first : stop - first] for start, stop in pairwise(cuts)]

    def _checked_count(self, wanted: int | None) -> int:
        """The rows that are in the data; fewer than in the index after a crash of the machine."""
        count = len(self._ends)
        if count and self._ends[count - 1] > self._data.size:
            count = bisect_right(self._ends, self._data.size)
            missing = self._ends[-1] - self._data.size
            if flushed_rows(self._sums) > count or missing > UNWRITTEN_BYTES:
                raise FormatError(
                    f"{self.version}: data end at byte {self._data.size}, but rows from {count} on go to "
                    f"{self._ends[-1]}: a file in data/ is missing or was cut"
                )
            warnings.warn(
                f"{self.version}: {len(self._ends) - count} rows after row {count} were never flushed "
                "and are left out",
                RuntimeWarning,
                stacklevel=2,
            )
        if wanted is None:
            return count
        if wanted > count:
            raise FormatError(f"{self.version}: {count} rows, but {wanted} when it was opened first")
        return wanted

    def _look_up(self, numbers: Sequence[int]) -> tuple[list[int], list[int], list[int] | None]:
        """Starts, stops and sums; no sums unless all have one."""
        ends, sums, summed = self._ends, self._sums, self._summed
        starts = [ends[number - 1] if number else 0 for number in numbers]
        stops = [ends[number] for number in numbers]
        if numbers and max(numbers) >= summed:
            return starts, stops, None
        return starts, stops, [sums[number] for number in numbers]

    def _look_up_many(self, numbers: Sequence[int]) -> tuple[list[int], list[int], list[int] | None]:
        try:
            import numpy as np
        except ModuleNotFoundError:
            return self._look_up(numbers)
        if self._arrays is None:
            self._arrays = np.asarray(self._ends), np.asarray(self._sums)
        ends, sums = self._arrays
        at = np.asarray(numbers, np.int64)
        starts = ends[at - 1]
        starts[at == 0] = 0
        wanted = sums[at].tolist() if int(at.max()) < self._summed else None
        return starts.tolist(), ends[at].tolist(), wanted

    def _look_up_paged(
        self, ends: PagedWords, numbers: Sequence[int]
    ) -> tuple[list[int], list[int], list[int] | None]:
        """In two requests to each worker, whatever the numbers are."""
        at = list(map(int, numbers))
        starts, stops = ends.take([max(0, number - 1) for number in at], 2)
        for i, number in enumerate(at):
            if number == 0:
                starts[i], stops[i] = 0, starts[i]
        if not at or max(at) >= self._summed:
            return starts, stops, None
        if isinstance(self._sums, PagedWords):
            return starts, stops, self._sums.take(at)[0]
        return starts, stops, [self._sums[number] for number in at]

    def _check(
        self, numbers: Sequence[int], found: Sequence[Row], starts: Sequence[int], stops: Sequence[int]
    ) -> None:
        """For rows of which some have no sum: at least their lengths must be those of the index."""
        for number, row, start, stop in zip(numbers, found, starts, stops, strict=True):
            if len(row) != stop - start:
                raise self._no_row(number)
        if self._summed:
            self._compare(numbers, found)

    def _compare(self, numbers: Sequence[int], found: Sequence[Row]) -> None:
        """Row by row, to say which; rows whose sum is not known pass."""
        for number, row, got in zip(numbers, found, sums_of(found), strict=True):
            wanted = self._sums[number] if number < self._summed else UNKNOWN
            if wanted not in (UNKNOWN, got):
                raise FormatError(
                    f"row {number} is damaged: its {len(row)} bytes have checksum {got:#018x}, "
                    f"written was {wanted:#018x} ({self.version})"
                )

    def _misplaced(self, numbers: Sequence[int]) -> FormatError | None:
        """For the first of these rows that the index puts where no row can be."""
        for number in map(int, numbers):
            start = self._ends[number - 1] if number else 0
            if not start <= self._ends[number] <= self._data.size:
                return self._no_row(number)
        return None

    def _no_row(self, number: int) -> FormatError:
        start = self._ends[number - 1] if number else 0
        return FormatError(
            f"row {number} is damaged: the index says bytes [{start}, {self._ends[number]}) "
            f"of {self._data.size} ({self.version})"
        )
