"""Runs with a published `alluxiofs`: a call as a line of JSON on stdin, its outcome as one on stdout.

{"on": "fs" or "client", "call": name, "args": [...], "kwargs": {...}} calls a method;
{"read": path, "pieces": [[start, length], ...]} opens a file, seeks and reads;
{"write": path, "size": n, "seed": s} opens one and writes;
{"many": [...], "threads": n} does several of these at the same time.
Bytes go in as {"seed": s, "size": n} and come out as {"size": n, "sha256": hex}.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import random
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor


def plain(value):
    if hasattr(value, "getvalue"):
        value = value.getvalue()
    if isinstance(value, (bytes, bytearray)):
        return {"size": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else vars(value)


def argument(value):
    if isinstance(value, dict) and set(value) == {"seed", "size"}:
        return random.Random(value["seed"]).randbytes(value["size"])
    return value


def perform(fs, step):
    if "many" in step:
        with ThreadPoolExecutor(step["threads"]) as pool:
            return list(pool.map(lambda one: outcome(fs, one), step["many"]))
    if "read" in step:
        with fs.open(step["read"], "rb") as file:
            found = []
            for start, length in step["pieces"]:
                file.seek(start)
                found.append(file.read(length))
            return found
    if "write" in step:
        with fs.open(step["write"], "wb") as file:
            file.write(random.Random(step["seed"]).randbytes(step["size"]))
        return True
    target = fs if step.get("on", "fs") == "fs" else fs.alluxio
    arguments = [argument(value) for value in step.get("args", ())]
    return getattr(target, step["call"])(*arguments, **step.get("kwargs", {}))


def outcome(fs, step):
    try:
        return {"value": plain(perform(fs, step))}
    except Exception as exc:
        return {"error": type(exc).__name__, "message": str(exc), "trace": traceback.format_exc()[-2000:]}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the client prints
    from alluxiofs import AlluxioFileSystem

    fs = AlluxioFileSystem(**json.loads(sys.argv[1]))
    answers.write('"ready"\n')
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(outcome(fs, json.loads(line))) + "\n")
        answers.flush()
    answers.close()
    os._exit(0)  # its threads are no daemons


main()
