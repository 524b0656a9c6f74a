"""A writer that does the steps of a seed to a table and says after each that it is done; to be killed."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

from kara_cache import kv

Model = list[tuple[str, Any]]
"""Keys and rows in order."""
STEPS = 250


def steps(seed: int) -> Iterator[tuple[str, list[Any]]]:
    rng = random.Random(seed)
    count = 0
    for i in range(STEPS):
        kind = (
            rng.choice(["append", "insert", "extend", "delete", "replace", "change", "batch"])
            if count
            else "append"
        )
        row = {"i": i, "text": "x" * rng.randrange(3000)}
        arguments: dict[str, list[Any]] = {
            "append": [f"a{i}", row],
            "insert": [rng.randint(0, count), f"i{i}", row],
            "extend": [[(f"e{i}.{j}", dict(row)) for j in range(rng.randrange(30))]],
            "delete": [rng.randrange(count or 1)],
            "replace": [rng.randrange(count or 1), row],
            "change": [rng.randrange(count or 1), i],
            "batch": [
                [(f"b{i}.{j}", dict(row)) for j in range(rng.randrange(30))],
                rng.randrange(count or 1),
            ],
        }
        count += {"append": 1, "insert": 1, "delete": -1}.get(kind, 0)
        count += len(arguments[kind][0]) if kind in ("extend", "batch") else 0
        count -= kind == "batch"
        yield kind, arguments[kind]


def do(table: kv.RowTable, kind: str, given: list[Any]) -> None:
    """When it returns, the step is on disk."""
    if kind == "append":
        table.append(given[1], given[0])
    elif kind == "insert":
        table.insert(given[0], given[2], given[1])
    elif kind == "extend":
        table.update(given[0])
    elif kind == "delete":
        del table[given[0]]
    elif kind == "replace":
        table[given[0]] = given[1]
    elif kind == "change":
        table[given[0]]["i"] = given[1]
        table.flush()
    else:
        with table.batch():
            table.update(given[0])
            del table[given[1]]


def do_to_model(model: Model, kind: str, given: list[Any]) -> None:
    if kind == "append":
        model.append((given[0], given[1]))
    elif kind == "insert":
        model.insert(given[0], (given[1], given[2]))
    elif kind == "extend":
        model.extend(given[0])
    elif kind == "delete":
        del model[given[0]]
    elif kind == "replace":
        model[given[0]] = (model[given[0]][0], given[1])
    elif kind == "change":
        key, row = model[given[0]]
        model[given[0]] = (key, {**row, "i": given[1]})
    else:
        model.extend(given[0])
        del model[given[1]]


def main(path: str, seed: str) -> None:
    with kv.open_table(path, "write", pool_size=20, map_bytes=1 << 20) as table:
        for kind, given in steps(int(seed)):
            do(table, kind, given)
            sys.stdout.write(".")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
