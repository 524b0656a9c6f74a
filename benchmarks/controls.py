"""Negative controls of cases that read through the worker of the scene: what the store was asked for."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.scene import Scene
from benchmarks.table_row import Row, Target

Case = Callable[[Scene], list[Row]]


def from_empty(name: str, case: Case) -> Case:
    """The case, and what the store was asked for: every page once, and none of them while it was measured.

    A case reads what it measures thousands of times, so that one that does not hit its pages shows.
    """

    def controlled(scene: Scene) -> list[Row]:
        with scene.client() as client:
            client.free("/near", recursive=True)
        kept, fetched = _kept(scene), scene.fetched()
        rows = case(scene)
        fetched = scene.fetched() - fetched
        kept = max(1.0, _kept(scene) - kept)
        what = f"control: {name}: bytes that the store sent"
        most = Target(1.5, at_least=False)
        return [
            *rows,
            Row(f"control_{name}_cold", f"{what}, from an empty cache on", [fetched], Target(1, ""), ""),
            Row(
                f"control_{name}_warm",
                f"{what} / bytes that the worker keeps of them",
                [fetched / kept],
                most,
            ),
        ]

    return controlled


def again_from_store(name: str, case: Case) -> Case:
    """For a case that frees what it reads before it reads it: the store sends everything each time."""

    def controlled(scene: Scene) -> list[Row]:
        fetched = scene.fetched()
        rows = case(scene)
        what = f"control: {name}: bytes that the store sent / bytes that the worker keeps at the end"
        return [*rows, Row(f"control_{name}", what, [(scene.fetched() - fetched) / _kept(scene)], Target(2))]

    return controlled


def _kept(scene: Scene) -> float:
    return scene.cluster.total("kara_worker_page_store_bytes")
