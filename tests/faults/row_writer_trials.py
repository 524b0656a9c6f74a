"""Writers that are killed, again and again, and what readers find: a program, run by any interpreter.

    python row_writer_trials.py kara_cache|kara_storage URL FIRST_SEED TRIALS

A trial has three sessions. In each a forked child appends rows, flushes now and then, and says so through
a pipe after each flush; at a point that the seed decides it kills itself with SIGKILL: between two calls
of the package, or (kara_cache on a disk) inside one, before or in the middle of a system call that
changes a file. Then everything is read. Prints a JSON list of what was wrong with each trial, [] if nothing:
"lost" rows whose flush had returned, "wrong" rows, or an error.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import warnings
from itertools import count
from typing import Any

SESSIONS = 3
SYSTEM_CALLS = ("write", "fsync", "ftruncate", "unlink", "rename", "open")


def main(package: str, url: str, first_seed: int, trials: int) -> list[list[str]]:
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.simplefilter("ignore")  # of torn tails: here they are meant
    return [
        trial(package, f"{url}/{seed}", random.Random(seed))
        for seed in range(first_seed, first_seed + trials)
    ]


def trial(package: str, url: str, source: random.Random) -> list[str]:
    kept = 0  # rows that must be there
    begins: list[list[bytes]] = [[]]  # what may be there; several, while no version was published yet
    failures = []
    for session in range(SESSIONS):
        rows = [row(source, session, number) for number in range(source.randrange(1, 60))]
        flushes = {source.randrange(len(rows)) for _ in range(source.randrange(4))}
        promised = run_child(package, url, source.randrange(1 << 30), rows, flushes)
        try:
            found = read(package, url)
        except Exception as exc:
            if "not exist" in str(exc) and not kept and not promised:
                begins = [begin + rows[:more] for begin in begins for more in range(len(rows) + 1)]
                continue
            return [*failures, f"error: session {session}: {type(exc).__name__}: {exc}"]
        if not any(found == (begin + rows)[: len(found)] for begin in begins):
            failures.append(f"wrong: session {session}, {len(found)} rows found")
        if len(found) < kept + promised:
            failures.append(f"lost: session {session}, {len(found)} rows, promised {kept + promised}")
        kept, begins = len(found), [found]
    return failures


def row(source: random.Random, session: int, number: int) -> bytes:
    size = source.choice((0, 10, 100, 3000, 200_000)) if number % 7 else 0
    return f"{session}/{number}:".encode() * bool(number % 5) + source.randbytes(size)


def run_child(package: str, url: str, seed: int, rows: list[bytes], flushes: set[int]) -> int:
    """How many of the rows were promised before the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            write(package, url, rows, flushes, writing, random.Random(seed))
        except BaseException as exc:
            sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
            os._exit(3)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        promised = len(said.read())
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the child failed by itself")
    return promised


def write(
    package: str, url: str, rows: list[bytes], flushes: set[int], promises: int, source: random.Random
) -> None:
    """One byte through the pipe for each row whose flush has returned."""
    steps = count()
    last = source.randrange(len(rows) + len(flushes) + 3)  # some are never reached: they close in peace
    inside = package == "kara_cache" and url.startswith("file:") and source.random() < 0.7
    if inside:
        die_in_a_system_call(source)

    def step() -> None:
        if not inside and next(steps) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    dataset = storage(package, url).open_dataset(
        "ns",
        "key",
        "w",
        version="v",
        serialization=raw(package),
        max_file_size=source.choice((1000, 700_000, 1 << 27)) if package == "kara_cache" else 1 << 27,
    )
    step()
    promised = 0
    for number, content in enumerate(rows, 1):
        dataset.write(content)
        step()
        if number - 1 in flushes:
            dataset.flush()
            PIPE_WRITE(promises, b"x" * (number - promised))
            promised = number
            step()
    dataset.close()
    PIPE_WRITE(promises, b"x" * (len(rows) - promised))


PIPE_WRITE = os.write


def die_in_a_system_call(source: random.Random) -> None:
    """Before one of the coming calls, or after half of what it should write."""
    numbers, last = count(), int(source.expovariate(1 / 40))

    def dying(name: str, call: Any) -> Any:
        def instead(*arguments: Any, **keywords: Any) -> Any:
            if next(numbers) == last:
                if name == "write" and source.random() < 0.7:
                    call(arguments[0], bytes(arguments[1])[: source.randrange(len(arguments[1]) + 1)])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return instead

    for name in SYSTEM_CALLS:
        setattr(os, name, dying(name, getattr(os, name)))


def read(package: str, url: str) -> list[bytes]:
    dataset = storage(package, url).open_dataset("ns", "key", "r", version="v", serialization=raw(package))
    found = list(dataset)
    by_index = [dataset[i] for i in range(len(dataset))] if package == "kara_cache" else found
    if by_index != found:
        raise AssertionError("rows by their index are others than in order")
    if package == "kara_cache" and (damaged := dataset.verify().damaged):
        raise AssertionError(f"damaged rows {damaged}")
    dataset.close()
    return found


def storage(package: str, url: str) -> Any:
    return __import__(package).KaraStorage(url, **json.loads(os.environ.get("TRIAL_OPTIONS", "{}")))


def raw(package: str) -> Any:
    module = __import__(f"{package}.serialization", fromlist=["NoSerializer"])
    return module.NoSerializer()


if __name__ == "__main__":
    json.dump(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])), sys.stdout)
