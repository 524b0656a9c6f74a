"""A thousand samples in one call, in the caller's order, against reading them one by one."""

from __future__ import annotations

from random import Random
from time import perf_counter

from benchmarks.rounds import interleave
from benchmarks.scene import KIB, Scene, warm
from benchmarks.table_row import Row, Target
from benchmarks.timing import aligned, summary

_SAMPLES = 1024
_LENGTH = 10 * KIB


def run(scene: Scene) -> list[Row]:
    paths = [f"/near/{name}" for name in scene.names["big"]]
    with scene.clients_pinned(), scene.client() as client:
        warm(client, paths)
        files = [client.info(path) for path in paths]
        chosen = Random(4)
        wanted = []
        for _ in range(_SAMPLES):
            file = chosen.choice(files)
            # samples of a packed file: anywhere, so about one in a hundred lies across two pages
            wanted.append((file, chosen.randrange(file.size - _LENGTH), _LENGTH))
        want = [client.read(*one) for one in wanted[:16]]
        if [bytes(view) for view in client.read_ranges(wanted)[:16]] != want:
            raise RuntimeError("a batch returned other bytes than single reads")
        view = aligned(_LENGTH)

        def single() -> dict[str, float]:
            times: list[float] = []
            while sum(times) < scene.settings.seconds:
                for file, start, _ in wanted:
                    began = perf_counter()
                    client.read_into(file, start, view)
                    times.append(perf_counter() - began)
            return summary(times)

        def batch() -> dict[str, float]:
            times: list[float] = []
            while sum(times) < scene.settings.seconds / _SAMPLES:
                began = perf_counter()
                client.read_ranges(wanted)
                times.append((perf_counter() - began) / _SAMPLES)
            return summary(times)

        rounds = interleave({"batch": batch, "single": single}, scene.settings.rounds, scene.meter)
    detail = {
        f"{name} us a sample, {m}": rounds.median(name, m)
        for name in ("batch", "single")
        for m in ("mean", "p99")
    }
    detail["batch GB/s"] = _LENGTH / rounds.median("batch", "mean") / 1e3
    return [
        Row(
            "batch_throughput",
            "single reads / read_ranges, 1024 x 10 KiB in the caller's order, time",
            rounds.ratios("single", "batch", "mean"),
            Target(15),
            detail=detail,
        ).of(rounds),
        Row(
            "batch_p99",
            "p99 of a single read / p99 of a batch's time for each sample",
            rounds.ratios("single", "batch", "p99"),
            Target(3.7),
        ).of(rounds),
    ]
