"""Reads on the worker's own host: through descriptors that it handed over."""

from __future__ import annotations

import itertools
import mmap
import os
from time import perf_counter

from benchmarks.cases.client import starts
from benchmarks.rounds import interleave, interleave_calls
from benchmarks.scene import KIB, MIB, Scene, warm
from benchmarks.table_row import Row, Target
from benchmarks.timing import aligned, summary

_LENGTH = 4 * KIB
_TOUCHED = 60  # pages, each of a file of its own, so that no descriptor comes with another's
_LEAST_LOCAL = 0.9  # of them; now and then a descriptor does not come in time, and the bytes do


def run(scene: Scene) -> list[Row]:
    with scene.clients_pinned():
        return [*_repeated(scene), _first_touch(scene)]


def _repeated(scene: Scene) -> list[Row]:
    name = scene.names["big"][0]
    path, data = f"/near/{name}", str(scene.files / name)
    view = aligned(_LENGTH)
    with scene.client(local_reads=True) as local, scene.client() as remote:
        warm(remote, [path])
        info, there = local.info(path), remote.info(path)
        places = starts(info, _LENGTH)
        for start in places:
            local.read_into(info, start, view)
            mapped = isinstance(local.view(info, start, _LENGTH).obj, mmap.mmap)
            if not mapped:
                raise RuntimeError("a view on this host is a copy")
        before = local.metrics.reads

        read, look, ask, many = local.read_into, local.view, remote.read_into, len(places)

        def opened(number: int) -> None:
            fd = os.open(data, os.O_RDONLY)
            os.preadv(fd, [view], places[number % many])
            os.close(fd)

        calls = {
            "held": lambda number: read(info, places[number % many], view),
            "view": lambda number: look(info, places[number % many], _LENGTH),
            "tcp": lambda number: ask(there, places[number % many], view),
            "open": opened,
        }
        rounds = interleave_calls(calls, scene.settings, scene.meter)
        if local.metrics.reads["worker"] != before["worker"]:
            raise RuntimeError("a repeated read on this host went to the worker")
    detail = {f"{name} {m} us": rounds.median(name, m) for name in calls for m in ("p50", "p99")}
    again = Row(
        "host_repeat",
        "repeated 4 KiB read on this host, verified, p50",
        rounds.of("held", "p50"),
        Target(3, "us", at_least=False),
        "us",
        detail,
    )
    seen = Row(
        "host_view",
        "repeated view of 4 KiB on this host, no copy, verified when mapped, p50",
        rounds.of("view", "p50"),
        Target(1, "us", at_least=False),
        "us",
    )
    over_tcp = Row(
        "host_tcp", "the same over TCP / on this host, p50", rounds.ratios("tcp", "held", "p50"), None
    )
    what = "os.open + pread + close of the file, not verified / the same, p50"
    by_path = Row("host_open", what, rounds.ratios("open", "held", "p50"), None)
    return [row.of(rounds) for row in (again, seen, over_tcp, by_path)]


def _first_touch(scene: Scene) -> Row:
    """A page that a process reads for the first time, against the same in a process that has only TCP.

    Both begin anew in each round: the first read of a file also finds its owners and makes its requests. And
    each time at places that nobody asked for before, since a worker keeps answers that come again.
    """
    names = scene.names["1MiB"][:_TOUCHED]
    paths = [f"/near/{name}" for name in names]
    view, places = aligned(_LENGTH), itertools.count(0, 2 * _LENGTH)
    with scene.client() as remote:
        warm(remote, paths)
        infos = [remote.info(path) for path in paths]

        def touched(local_reads: bool) -> dict[str, float]:
            times, place = [], next(places) % (MIB - _LENGTH)
            with scene.client(local_reads=local_reads) as client:
                # connections are up and the socket's identity is checked before the clock runs
                client.read_into(client.info(f"/near/{scene.names['1MiB'][-1]}"), 0, view)
                for info in infos:
                    began = perf_counter()
                    client.read_into(info, place, view)
                    times.append(perf_counter() - began)
                if local_reads and client.metrics.reads["local"] < _LEAST_LOCAL * _TOUCHED:
                    raise RuntimeError(f"first touches were not local: {client.metrics.reads}")
            return summary(times)

        variants = {"first": lambda: touched(True), "request": lambda: touched(False)}
        rounds = interleave(variants, scene.settings.rounds, scene.meter)
    detail = {f"{name} p50 us": rounds.median(name, "p50") for name in ("first", "request")}
    return Row(
        "host_first",
        "first touch of a page on this host / first 4 KiB of its file over TCP, p50",
        rounds.ratios("first", "request", "p50"),
        Target(1.0, at_least=False),
        detail=detail,
    ).of(rounds)
