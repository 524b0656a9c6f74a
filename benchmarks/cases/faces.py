"""What fsspec's face adds to a call of the client."""

from __future__ import annotations

import fsspec

from benchmarks.cases.client import starts
from benchmarks.rounds import interleave_calls
from benchmarks.scene import KIB, Scene, warm
from benchmarks.table_row import Row, Target

_ADDED = Target(25, "us", at_least=False)


def run(scene: Scene) -> list[Row]:
    path, length = f"/near/{scene.names['big'][0]}", 4 * KIB
    options = {**scene.cluster.client_options, "local_reads": False}
    fs = fsspec.filesystem("kara", **options, skip_instance_cache=True)
    rows = []
    with scene.clients_pinned(), scene.client() as client:
        warm(client, [path])
        info = client.info(path)
        places = starts(info, length)

        def read(number: int) -> object:
            return client.read(info, places[number % len(places)], length)

        def look_up_and_read(number: int) -> object:
            return client.read(client.info(path), places[number % len(places)], length)

        def cat_file(number: int) -> object:
            start = places[number % len(places)]
            return fs.cat_file(path, start, start + length)

        def open_and_read(number: int) -> object:
            with fs.open(path) as file:
                file.seek(places[number % len(places)])
                return file.read(length)

        with fs.open(path) as opened:

            def seek_and_read(number: int) -> object:
                opened.seek(places[number % len(places)])
                return opened.read(length)

            pairs = (
                ("cat_file", "fs.cat_file(4 KiB) - CacheClient.info + read", cat_file, look_up_and_read),
                (
                    "open",
                    "fs.open + read(4 KiB) + close - CacheClient.info + read",
                    open_and_read,
                    look_up_and_read,
                ),
                ("read", "read(4 KiB) of an open file - CacheClient.read", seek_and_read, read),
            )
            for key, what, face, core in pairs:
                rounds = interleave_calls({"face": face, "client": core}, scene.settings, scene.meter)
                values = rounds.differences("face", "client", "p50")
                detail = {f"{name} p50 us": rounds.median(name, "p50") for name in ("face", "client")}
                rows.append(Row(f"fsspec_{key}", f"{what}, p50", values, _ADDED, "us", detail).of(rounds))
    fs.close()
    return rows
