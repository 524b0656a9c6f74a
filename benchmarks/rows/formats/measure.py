"""One format, measured on request. Runs in the format's own environment, so it imports only what all have.

A format is a module beside this one with

    write(rows, home)        an iterator of bytes, to a directory; durable when it returns if it can be
    Reader(home, decode)     what was written; rows are bytes or views, or what `decode` makes of them
        len(reader), reader[i], iter(reader)
        batch(indices)       optional: many rows at once
        shuffled()           optional: an epoch in the format's own random order
        dataset(shuffle)     optional: what a DataLoader gets; by default map-style over a Reader

Requests come as JSON lines on stdin, answers go as JSON lines to stdout.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from mmap import ACCESS_READ, mmap
from typing import Any

RANDOM_ROWS = 20_000
POOL_ROWS = 4096  # of the shuffle for formats without one: kara-storage's algorithm and default
BATCH_ROWS = 256
LIMIT_S = 2.0  # of one measurement; what was read until then counts

Decode = Callable[[Any], Any]


def source_rows(data: str, ends: str) -> Iterator[bytes]:
    """The generated rows, as the producer of a data set would hand them over."""
    with open(data, "rb") as file:
        area, start = mmap(file.fileno(), 0, access=ACCESS_READ), 0
    for end in _ends(ends):
        yield area[start:end]
        start = end


def _ends(path: str) -> array[int]:
    with open(path, "rb") as file:
        ends = array("Q", file.read())
    if sys.byteorder == "big":
        ends.byteswap()
    return ends


def pooled(rows: Iterable[Any], seed: int = 0) -> Iterator[Any]:
    """Rows in the order of a shuffle through a pool."""
    take = random.Random(seed).random
    source = iter(rows)
    pool = [row for row, _ in zip(source, range(POOL_ROWS), strict=False)]
    for row in source:
        at = int(take() * POOL_ROWS)
        yield pool[at]
        pool[at] = row
    while pool:
        at = int(take() * len(pool))
        yield pool[at]
        pool[at] = pool[-1]
        pool.pop()


def decoder() -> Decode:
    """The fastest one for Python; formats that bring their own do not call it, and need not have it."""
    try:
        import msgspec
    except ModuleNotFoundError:
        return _no_decoder
    return msgspec.json.Decoder().decode  # type: ignore[no-any-return]


def _no_decoder(row: Any) -> Any:
    raise ModuleNotFoundError("msgspec, which decodes JSON for formats without a decoder")


class RowMap:
    """Map-style, and opened once in each process."""

    def __init__(self, module: Any, home: str, decode: bool) -> None:
        self._arguments = (module.__name__, home, decode)
        self._opened: tuple[int, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        name, home, decode = self._arguments
        return _row_map, (name, home, decode)

    @property
    def rows(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            name, home, decode = self._arguments
            self._opened = os.getpid(), importlib.import_module(name).Reader(home, _decode_of(decode))
        return self._opened[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        rows = self.rows
        return rows.batch(indices) if hasattr(rows, "batch") else [rows[i] for i in indices]  # type: ignore[no-any-return]


def _row_map(name: str, home: str, decode: bool) -> RowMap:
    return RowMap(importlib.import_module(name), home, decode)


class Measure:
    """The columns of the table."""

    def __init__(self, module: Any, home: str) -> None:
        self._module = module
        self._home = home
        self._readers: dict[bool, Any] = {}

    def write(self, home: str, data: str, ends: str, keep: bool) -> dict[str, float]:
        shutil.rmtree(home, ignore_errors=True)
        os.makedirs(home)
        began = time.perf_counter()
        self._module.write(source_rows(data, ends), home)
        seconds = time.perf_counter() - began
        size = sum(_stored(os.path.join(d, name)) for d, _, names in os.walk(home) for name in names)
        if not keep:
            shutil.rmtree(home)
        return {"rows": len(_ends(ends)), "seconds": seconds, "bytes": size}

    def sequential(self, decode: bool) -> dict[str, float]:
        reader = self._reader(decode)
        return _timed(reader, decode)

    def random(self, decode: bool) -> dict[str, float]:
        reader = self._reader(decode)
        source = random.Random(7)
        indices = [source.randrange(len(reader)) for _ in range(RANDOM_ROWS)]
        return _timed((reader[i] for i in indices), decode)

    def permutation(self, decode: bool) -> dict[str, float]:
        reader = self._reader(decode)
        order = list(range(len(reader)))
        random.Random(8).shuffle(order)
        if not hasattr(reader, "batch"):
            return _timed((reader[i] for i in order), decode)
        parts = (order[at : at + BATCH_ROWS] for at in range(0, len(order), BATCH_ROWS))
        return _timed((row for part in parts for row in reader.batch(part)), decode)

    def shuffled(self, decode: bool) -> dict[str, float]:
        reader = self._reader(decode)
        own = getattr(reader, "shuffled", None)
        return _timed(pooled(reader) if own is None else own(), decode)

    def streamed(self, decode: bool) -> dict[str, float]:
        return _timed(self._reader(decode).streamed(), decode)

    def loader(self, decode: bool) -> dict[str, float]:
        return self._loader(decode, shuffle=False)

    def loader_shuffled(self, decode: bool) -> dict[str, float]:
        return self._loader(decode, shuffle=True)

    def check(self, decode: bool) -> dict[str, Any]:
        """What single rows, a batch and a pass in sequence gave, to compare with what was written."""
        reader, digest = self._reader(decode), hashlib.blake2b(digest_size=16)
        for row in reader:
            digest.update(bytes(row))
        indices = random.Random(9).sample(range(len(reader)), min(500, len(reader)))
        single = [bytes(reader[i]) for i in indices]
        batch = [bytes(row) for row in reader.batch(indices)] if hasattr(reader, "batch") else single
        return {
            "all": digest.hexdigest(),
            "single": hashlib.blake2b(b"".join(single), digest_size=16).hexdigest(),
            "same": batch == single,
        }

    def memory(self, decode: bool) -> dict[str, float]:
        """Peak resident memory of a sequential pass in a process of its own; and its private part."""
        self.sequential(decode)
        return {"peak_bytes": _status("VmHWM"), "anonymous_bytes": _status("RssAnon")}

    def _loader(self, decode: bool, *, shuffle: bool) -> dict[str, float]:
        """An epoch from when both workers have sent a batch: starting processes is not the format's."""
        from torch.utils.data import DataLoader, IterableDataset

        if hasattr(self._module.Reader, "dataset"):
            dataset = self._module.Reader(self._home, _decode_of(decode)).dataset(shuffle)
        else:
            dataset = RowMap(self._module, self._home, decode)
        options: dict[str, Any] = {} if isinstance(dataset, IterableDataset) else {"shuffle": shuffle}
        make = getattr(self._module, "loader", DataLoader)
        if hasattr(self._module, "START_METHOD"):
            options["multiprocessing_context"] = self._module.START_METHOD
        loader = make(dataset, batch_size=BATCH_ROWS, num_workers=2, collate_fn=_as_list, **options)
        batches = iter(loader)
        first = [row for _, batch in zip(range(2), batches, strict=False) for row in batch]
        result = _timed((row for batch in batches for row in batch), decode)
        if result["seconds"] < LIMIT_S and result["rows"] + len(first) != len(dataset):
            raise RuntimeError(f"{result['rows'] + len(first):.0f} rows of {len(dataset)}")
        return result

    def _reader(self, decode: bool) -> Any:
        if decode not in self._readers:
            self._readers[decode] = self._module.Reader(self._home, _decode_of(decode))
        return self._readers[decode]


def _as_list(batch: list[Any]) -> list[Any]:
    """Views cannot be sent to another process."""
    return [bytes(row) for row in batch] if isinstance(batch[0], memoryview) else batch


def _decode_of(decode: bool) -> Decode | None:
    return decoder() if decode else None


def _timed(rows: Iterable[Any], decode: bool) -> dict[str, float]:
    """Takes rows and looks at their lengths, which no format can do without finding the row.

    Ends early with a format that would take minutes.
    """
    count = size = 0
    began = time.perf_counter()
    stop = began + LIMIT_S
    for row in rows:
        size += len(row)
        count += 1
        if not count & 1023 and time.perf_counter() > stop:
            break
    seconds = time.perf_counter() - began
    if not decode and not 100 < size / max(1, count) < 100_000:
        raise RuntimeError(f"{count} rows of {size} bytes are not those that were written")
    return {"rows": count, "seconds": seconds}


def _stored(path: str) -> int:
    return min(os.stat(path).st_size, os.stat(path).st_blocks * 512)


def _status(name: str) -> float:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024.0
    raise LookupError(name)


def main(name: str, home: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    measure = Measure(importlib.import_module(name), home)
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(measure, request.pop("column"))(**request)
        except Exception as exc:  # noqa: BLE001 - the other side reports it beside the peer's name
            answer = {"error": f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    # Under its own name too: workers of a loader that are spawned unpickle `RowMap` from it.
    from measure import main as run

    run(*sys.argv[1:])
