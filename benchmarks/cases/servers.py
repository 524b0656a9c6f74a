"""Files by HTTP at 1, 16 and 64 connections: our worker, nginx with the files themselves, and HTTP caches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.peers.all import SERVERS
from benchmarks.peers.peer import Served, UnavailableError
from benchmarks.rounds import interleave, tree_cpu_s
from benchmarks.scene import SIZES, Scene, warm
from benchmarks.table_row import Row, Target

CONNECTIONS = (1, 16, 64)
_ROUNDS = 5
_SECONDS = 0.3
_AHEAD = Target(1.0)
_DETAIL = {"req/s": "rate", "CPU us/req": "cpu_us", "p50 us": "p50_us", "p99 us": "p99_us"}


@dataclass(frozen=True)
class _Server:
    name: str
    port: int
    pid: int


def run(scene: Scene) -> list[Row]:
    with contextlib.ExitStack() as stack:
        servers = {"nginx_static": _Server("nginx, the files themselves", scene.nginx.port, scene.nginx.pid)}
        serving: dict[str, Served] = {}
        for peer in filter(lambda one: scene.settings.wants(one.key), SERVERS):
            try:
                peer.python()
                served = stack.enter_context(peer.serve(scene))
            except (UnavailableError, RuntimeError) as exc:
                scene.skipped[peer.name] = str(exc)
                continue
            stack.enter_context(scene.also(*served.pids))
            serving[peer.key] = served
            servers[peer.key] = _Server(peer.name, served.options["port"], served.pids[0])
        stack.enter_context(scene.clients_pinned())
        return _measured(scene, servers, serving)


def _measured(scene: Scene, servers: Mapping[str, _Server], serving: Mapping[str, Served]) -> list[Row]:
    rows: list[Row] = []
    store_before = scene.nginx.requests()
    asked = 0.0
    labels = tuple(SIZES)[:3]
    with scene.client() as client:
        for label in labels:
            names = scene.names[label]
            warm(client, [f"/near/{name}" for name in names])
            ours = scene.targets(client, names)
            theirs = [f"/{name}" for name in names]
            for key in serving:
                _fill(scene, servers[key].port, theirs)
            for connections in CONNECTIONS:
                print(f"  {label}, {connections} connections ...", file=sys.stderr, flush=True)
                found, more = _round(scene, servers, serving, ours, theirs, label, connections)
                rows += found
                asked += more
    if not serving:
        return rows
    cold = scene.nginx.requests() - store_before - asked
    names = " and ".join(servers[key].name for key in serving)
    return [
        *rows,
        _control("cold", f"{names}: requests to the store while they were empty", cold, Target(1, "")),
        _control(
            "warm", f"{names}: requests to the store while measured", asked, Target(0, "", at_least=False)
        ),
    ]


def _control(key: str, what: str, value: float, target: Target) -> Row:
    return Row(f"control_servers_{key}", f"control: {what}", [value], target, "")


def _round(
    scene: Scene, servers: Mapping[str, _Server], serving: Mapping[str, Served], ours: list[str],
    theirs: list[str], label: str, connections: int,
) -> tuple[list[Row], float]:  # fmt: skip
    """Rows, and what went to the store for the caches: nginx's own answers are subtracted."""
    own = 0.0

    def variant(server: _Server, targets: list[str]) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            nonlocal own
            before, seconds = tree_cpu_s(server.pid), max(0.1, min(_SECONDS, scene.settings.seconds))
            requests = scene.nginx.requests()
            found = scene.loader.run(server.port, targets, connections=connections, seconds=seconds)
            cpu = tree_cpu_s(server.pid) - before
            if server.port == scene.nginx.port:
                own += scene.nginx.requests() - requests
            return {
                "rate": found["requests"] / found["seconds"],
                "cpu_us": cpu * 1e6 / max(1.0, found["requests"]),
                "p50_us": found["p50_us"],
                "p99_us": found["p99_us"],
            }

        return once

    variants = {"worker": variant(_Server("", scene.worker.port, scene.worker.pid), ours)}
    variants |= {key: variant(server, theirs) for key, server in servers.items()}
    before = scene.nginx.requests()
    rounds = interleave(variants, min(_ROUNDS, scene.settings.rounds), scene.meter)
    asked = scene.nginx.requests() - before - own
    rows = []
    for key, server in servers.items():
        detail = {
            f"{name} {metric}": rounds.median(variant, value)
            for variant, name in (("worker", "worker"), (key, "peer"))
            for metric, value in _DETAIL.items()
        }
        what = f"worker / {server.name}, {label} files, {connections} connections, req/s"
        target = _AHEAD if key in serving else None  # files without a cache: the limit, see `worker`
        values = rounds.ratios("worker", key, "rate")
        rows.append(
            Row(f"server_{key}_{label}_{connections}", what, values, target, detail=detail).of(rounds)
        )
    return rows, asked


def _fill(scene: Scene, port: int, targets: list[str]) -> None:
    """Asks for each target at least once, so that a cache has them all."""
    done = 0
    while done < len(targets):
        done += int(scene.loader.run(port, targets[done:], connections=1, seconds=0.1)["requests"])
